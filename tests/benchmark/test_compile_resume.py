"""--resume: only what the same config and compilers made is gone on with."""

import importlib.metadata
import json
import re

import jax
import pytest

from dhat_jax.benchmark import __main__ as command
from dhat_jax.benchmark import compile as compiling
from dhat_jax.benchmark import compile_resume, largest
from dhat_jax.runtime import documents
from tests.docs.pages import DOCS
from tests.helpers import tiny_run

CONFIG = '--config=configs/digits.py'
PACKAGE = 'numpy'  # in a compiler's place, which may not be installed


def row(**changes):
  return {
    'target': 'h100:2',
    'program': 'main_head',
    'kind': 'training',
    'batch_size': 8,
    'devices': 2,
    'dtype': 'bfloat16',
    'flops': 2e12,
    'error': 'no',
    **changes,
  }


def stored(**changes):
  """A document as --what=compile writes it."""
  return documents.document(
    'benchmark',
    {
      'what': 'compile',
      **compile_resume.identity(tiny_run.get_config(), 'compile'),
      'compilers': {PACKAGE: importlib.metadata.version(PACKAGE)},
      'rows': [row()],
      **changes,
    },
  )


def rows(document, config=None):
  return compile_resume.rows(
    document,
    'out.json',
    what='compile',
    identity=compile_resume.identity(
      config or tiny_run.get_config(), 'compile'
    ),
    keys=compiling.KEYS,
    table=compiling.table,
  )


def test_rows_of_the_same_call_are_taken():
  assert rows(stored()) == [row()]
  # A compiler that is not installed here compiles nothing here.
  assert rows(stored(compilers={'no-such-compiler': '1'})) == [row()]


def changed(key, value):
  config = tiny_run.get_config()
  group, _, name = key.rpartition('.')
  config[group][name] = value
  return config


@pytest.mark.parametrize(
  ('key', 'value', 'what'),
  [
    ('model.remat', True, ''),
    ('model.backbone', 'resnet18', 'largest'),
    ('main_head.attack.steps', 7, ''),
    ('evaluation.epsilon', 0.5, ''),
    ('model.dtype', 'bfloat16', 'compile largest'),
    ('main_head.batch_size', 2, 'compile largest'),
  ],
)
def test_the_digest_is_of_what_rows_do_not_name(key, value, what):
  for name in ('compile', 'largest'):
    before = compile_resume.identity(tiny_run.get_config(), name)
    after = compile_resume.identity(changed(key, value), name)
    assert (after == before) == (name in what)
    # The order of keys and calls does not count.
    assert compile_resume.identity(tiny_run.get_config(), name) == before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'what': 'peer'}, "of what 'peer', expected 'compile'"),
    ({'config': 'cifar10'}, "of config 'cifar10', expected 'tiny'"),
    (
      {'config_digest': 'abc'},
      "of config_digest 'abc', expected '[0-9a-f]{64}",
    ),
    ({'compilers': {PACKAGE: '0'}}, rf"of {PACKAGE} '0', expected"),
    ({'compilers': None}, 'with no compilers, expected'),
    ({'rows': None}, 'with no rows, expected'),
    ({'rows': [7]}, "with no 'target' in row 0"),
    ({'rows': [row(), {'target': 'h100:1'}]}, "with no 'program' in row 1"),
    ({'rows': [row(batch_size='x')]}, 'with damaged rows'),
    ({'rows': [row(devices=0)]}, 'with damaged rows'),
    (
      {'rows': [{k: v for k, v in row().items() if k != 'error'}]},
      'with damaged rows',
    ),
  ],
)
def test_other_documents_are_refused(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    rows(stored(**changes))
  text = str(caught.value)
  assert text.startswith('--resume: got out.json ')
  assert text.endswith('; choose another --out')
  assert '\n' not in text


def test_another_jax_is_refused():
  document = stored()
  document['machine']['versions']['jax'] = '0.1'
  expected = re.escape(repr(jax.__version__))
  with pytest.raises(ValueError, match=f"of jax '0.1', expected {expected}"):
    rows(document)
  document['machine'] = 'a machine'
  with pytest.raises(ValueError, match='of jax None, expected'):
    rows(document)


@pytest.mark.parametrize('what', ['compile', 'largest'])
def test_documents_without_a_digest_are_shown_but_not_gone_on_with(
  what, capsys
):
  path = DOCS / 'results' / f'{what}.json'
  document = documents.read(str(path))
  module = {'compile': compiling, 'largest': largest}[what]
  assert module.table(document).count('\n') > 10
  before = path.read_bytes()
  with pytest.raises(SystemExit) as stopped:
    command.main(
      [
        *('benchmark', '--config=configs/cifar10.py:trades_wrn34_10'),
        *(f'--what={what}', '--target=h100:1', '--resume', f'--out={path}'),
      ]
    )
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert 'config_digest' in error
  assert error.count('\n') == 1
  assert path.read_bytes() == before


def test_a_damaged_file_is_one_line(tmp_path, capsys):
  path = tmp_path / 'out.json'
  for text in ('{', '[]', json.dumps(stored(rows=[{}], config='digits'))):
    path.write_text(text)
    with pytest.raises(SystemExit):
      command.main(
        [
          *('benchmark', CONFIG, '--what=compile', '--target=h100:1'),
          *('--resume', f'--out={path}'),
        ]
      )
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
