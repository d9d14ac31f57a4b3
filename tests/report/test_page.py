"""The page of whole, partial and broken workdirs."""

import html.parser
import json
import subprocess
import sys

import numpy as np
import pytest

from dhat_jax.report import __main__ as report
from dhat_jax.report import page, plots, read
from tests.report import workdirs

VOID = {'meta', 'img', 'br', 'link'}


class Checker(html.parser.HTMLParser):
  """Collects what a page links to; raises where tags do not nest."""

  def __init__(self):
    super().__init__()
    self.open, self.images, self.links, self.ids = [], [], [], []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'img':
      assert attrs['alt']
      self.images.append(attrs['src'])
    self.links += [attrs['href']] if 'href' in attrs else []
    self.ids += [attrs['id']] if 'id' in attrs else []

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def check(text):
  checker = Checker()
  checker.feed(text)
  checker.close()
  assert not checker.open
  # Nothing is fetched, and every link of the contents leads somewhere.
  assert all(src.startswith('data:image/png;base64,') for src in checker.images)
  assert all(link[1:] in checker.ids for link in checker.links)
  return checker


def make(*directories):
  path = report.write([str(directory) for directory in directories])
  with open(path, encoding='utf-8') as file:
    return file.read()


def test_whole_workdir(tmp_path):
  text = make(workdirs.make(tmp_path / 'one'))
  assert len(check(text).images) == 7
  assert 'class="missing"' not in text
  assert (
    'The aggregated output is right on 100.0 % of the clean images and on '
    '25.0 % under pgd_2, its worst attack.' in text
  )
  assert 'The audit raised 1 red flag: the robustness' in text
  assert 'It found &lt;more&gt;.' in text
  # Tables to copy.
  assert '| output | clean | pgd_2 | worst case |' in text
  assert r'\begin{tabular}' in text
  files = sorted(path.name for path in (tmp_path / 'one/report').iterdir())
  assert 'one_accuracy.csv' in files
  assert 'one_accuracy.tex' in files
  assert 'comparison.md' in files
  assert sum(name.endswith('.png') for name in files) == 7
  for name in files:
    if name.endswith('.png'):
      data = (tmp_path / 'one/report' / name).read_bytes()
      assert data.startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('key', 'value', 'images'),
  [
    ('audit', {'attack': 'pgd_2'}, 7),
    ('heads', [], 6),
    ('worst_case', 'x', 7),
  ],
)
def test_damaged_results_cost_their_section_alone(key, value, images, tmp_path):
  directory = workdirs.make(tmp_path / 'one')
  path = tmp_path / 'one' / 'results.json'
  path.write_text(json.dumps({**workdirs.results(), key: value}))
  text = make(directory)
  assert len(check(text).images) == images
  assert 'This cannot be shown' in text
  assert '<h3 id="run0s11">Config and versions</h3>' in text


def test_folders_of_one_name(tmp_path):
  text = make(
    workdirs.make(tmp_path / 'a' / 'run'),
    workdirs.make(tmp_path / 'b' / 'run', seed=1, shift=-0.02),
  )
  assert 'run_2' in text
  first, second = (
    (tmp_path / f'a/run/report/{name}_accuracy.csv').read_text()
    for name in ('run', 'run_2')
  )
  assert 'main,75.0,50.0' in first
  assert 'main,73.0,48.0' in second


def test_one_record_is_a_point(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  run.records = run.records[:1]
  axes = plots.curves(run).axes
  assert [line.get_marker() for line in axes[0].lines] == ['o']
  assert [line.get_marker() for line in axes[1].lines] == ['o', 'o']


def test_cost_and_agreement(tmp_path):
  run = read.load(workdirs.make(tmp_path))
  cost = page._cost(run)
  assert '<td>main_head</td><td class="number">10</td>' in cost
  assert '<td class="number">200</td><td class="number">4.0</td>' in cost
  assert 'only the main head right' in page._agreement(run)


def test_side_by_side(tmp_path):
  text = make(
    workdirs.make(tmp_path / 'one'),
    workdirs.make(tmp_path / 'two', seed=1, shift=-0.02),
  )
  assert len(check(text).images) == 14
  assert '74.0 ± 1.4' in text
  assert not (tmp_path / 'two/report.html').exists()


def test_empty_folder(tmp_path):
  text = make(tmp_path)
  checker = check(text)
  assert not checker.images
  assert 'has not been evaluated yet' in text
  assert text.count('class="missing"') == len(page.sections({}))


def test_in_the_middle_of_training(tmp_path):
  directory = workdirs.make(tmp_path / 'one')
  (tmp_path / 'one/results.json').unlink()
  with open(tmp_path / 'one/metrics.jsonl', 'a') as file:
    file.write('{"stage": "main_he')  # cut off by a kill
  text = make(directory)
  assert len(check(text).images) == 1
  assert 'the run has not come to its evaluation' in text
  assert 'cannot be read' not in text


@pytest.mark.parametrize(
  ('name', 'content', 'sentence'),
  [
    ('results.json', '{"accuracy": {', 'results.json cannot be read'),
    ('results.json', '[1]', 'results.json cannot be read: it holds no object'),
    (
      'results.json',
      '{"a": 1}',
      'results.json cannot be read: it holds no acc',
    ),
    ('config.json', 'nothing', 'config.json cannot be read'),
    (
      'metrics.jsonl',
      'x\n{"stage": "a", "step": 1}\n',
      'line 1 cannot be read',
    ),
    ('metrics.jsonl', b'\xff\xfe\n', 'metrics.jsonl cannot be read'),
  ],
)
def test_broken_files_are_named(name, content, sentence, tmp_path):
  directory = workdirs.make(tmp_path)
  data = content if isinstance(content, bytes) else content.encode()
  (tmp_path / name).write_bytes(data)
  text = make(directory)
  check(text)
  assert sentence in text


def test_single_head_and_older_results(tmp_path):
  """Results of one output, without anything that came later."""
  directory = workdirs.make(tmp_path)
  results = workdirs.results()
  kept = ('accuracy', 'worst_case', 'per_class', 'confusion')
  old = {key: {'main': results[key]['main']} for key in kept}
  old |= {'epsilon': 0.02, 'n_test': 4, 'seconds': {}}
  (tmp_path / 'results.json').write_text(json.dumps(old))
  text = make(directory)
  assert len(check(text).images) == 3
  assert 'The main output is right on 75.0 %' in text
  assert text.count('output is right on') == 1


def test_damaged_part(tmp_path):
  directory = workdirs.make(tmp_path)
  path = tmp_path / 'evaluation/aggregated/pgd_2.npz'
  path.write_bytes(path.read_bytes()[:40])
  assert 'No images were kept' in make(directory)


def test_parts_without_images(tmp_path):
  directory = workdirs.make(tmp_path)
  np.savez(tmp_path / 'evaluation/aggregated/clean.npz', robust=np.ones(4))
  assert 'No images were kept' in make(directory)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir: got nothing'),
    (['--workdir=/no/such'], "--workdir: got '/no/such', which is no folder"),
    (['surplus'], "arguments: got ['surplus']"),
    (['--colour=red'], 'colour'),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    report.main(['report', *arguments])
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert message in error


def test_no_jax(tmp_path):
  """Neither JAX nor an accelerator is needed to look at a run."""
  directory = workdirs.make(tmp_path)
  code = (
    'import sys\n'
    'from dhat_jax.report import __main__ as report\n'
    f'report.main(["report", "--workdir={directory}"])\n'
    'assert "jax" not in sys.modules\n'
    'assert "flax" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
