"""Writes the tables of README.md and docs/*.md from docs/results/*.json.

    python docs/tools/tables.py            write them
    python docs/tools/tables.py --check    exit with 1 if they are out of date

A marker `<!-- table: NAME -->` is a document of `dhat_jax.runtime.documents`;
`NAME__VIEW` asks for a view: of an experiment `accuracies`, `differences` or
`summary`, of a run `broken`.
"""

import importlib
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from dhat_jax.runtime import documents, provenance  # noqa: E402

DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]
PATTERN = re.compile(r'<!-- table: (\w+) -->\n.*?<!-- end -->', re.DOTALL)
# What is compared with a training step here.
SIDES = ('published', 'optimised', 'compiled')
# Commands of older documents, and how they are given today.
RENAMED = {'python launch/survival.py': 'python -m tests.survival.campaign'}


def accuracy_rows(
  accuracy: Mapping[str, Mapping[str, float]],
  label: str,
  attacks: Sequence[str],
) -> Iterator[tuple[str, ...]]:
  """Yields a network's rows: accuracies in percent, empty if not measured."""
  for output, by_attack in accuracy.items():
    yield (
      label,
      output,
      *(
        f'{100 * by_attack[attack]:.1f}' if attack in by_attack else ''
        for attack in attacks
      ),
    )


def run_table(document: Mapping[str, Any], view: str) -> list[str]:
  """Returns the table of a run's results, with its caption."""
  if view == 'broken':
    return broken_table(document)
  results = document.get('results', document)
  machine = document['machine']
  if isinstance(machine, str):  # of version 1
    machine = {'device': machine, 'versions': results['versions']}
  accuracy, natural = results['accuracy'], results.get('natural')
  attacks = list(dict.fromkeys(a for row in accuracy.values() for a in row))
  rows = list(accuracy_rows(accuracy, 'adversarially', attacks))
  seconds = sum(results['seconds'].values())
  if natural is not None:
    label = 'on clean images only'
    rows += accuracy_rows(natural['accuracy'], label, attacks)
    seconds += sum(natural['seconds'].values())
  headers = 'trained', 'output', *attacks
  return [
    documents.markdown_table(headers, rows, left=2),
    '',
    f'Accuracy in % on the {results["n_test"]:,} test images of '
    f'{document.get("data_name", results["dataset"])}; epsilon '
    f'{results["epsilon"]:.4g} ({255 * results["epsilon"]:.3g}/255); seed '
    f'{results["seed"]}; {seconds:.0f} s on {provenance.describe(machine)}. '
    f'{document.get("note", "")}'.rstrip(),
  ]


def broken_table(document: Mapping[str, Any]) -> list[str]:
  """Returns how many images each attack of AutoAttack broke first."""
  results = document.get('results', document)
  best = results.get('best_known', {})
  names, rows = {}, []
  for output, attacks in results['autoattack'].items():
    for name, numbers in attacks.items():
      if not name.startswith('autoattack'):
        continue  # one of its attacks alone
      counts = broken_by(numbers)
      names |= dict.fromkeys(counts)
      robust = numbers['images'] - sum(counts.values())
      row = [output, *map(str, counts.values()), str(robust)]
      if output in best:
        known = best[output]
        row.append(str(round(known['accuracy'] * known['images'])))
      rows.append(row)
  names = ['wrong when clean' if n == 'clean' else n for n in names]
  headers = ['output', *names, 'robust']
  if best:
    headers.append('robust to all attacks')
  return [
    documents.markdown_table(headers, rows, left=1),
    '',
    f'Of the {results["n_test"]} test images of '
    f'{document.get("data_name", results["dataset"])}: how many each attack '
    'broke first.',
  ]


def broken_by(numbers: Mapping[str, Any]) -> dict[str, int]:
  """Returns {attack: images that it broke first}; older results have shares."""
  if 'broken_by' in numbers:
    return numbers['broken_by']
  after = numbers['accuracy_after']
  left = [numbers['images'], *(numbers['images'] * s for s in after.values())]
  return {
    name: round(before) - round(now)
    for name, before, now in zip(after, left, left[1:], strict=False)
  }


def benchmark_table(document: Mapping[str, Any], view: str) -> list[str]:
  """Returns the table of what `dhat_jax.benchmark` measured, with caption."""
  del view
  module = importlib.import_module(f'dhat_jax.benchmark.{document["what"]}')
  compilers = document.get('compilers', {})
  machine = provenance.describe(
    document['machine'],
    packages=('jax',) if compilers else ('jax', 'torch', 'pyautoattack'),
  )
  versions = [f'{name} {version}' for name, version in compilers.items()]
  verb = 'Compiled' if compilers else 'Measured'
  caption = ', '.join([f'{verb} on {machine}', *versions])
  if 'repeats' in document:
    caption += f'; medians of {document["repeats"]}'
  return [module.table(document), '', f'{caption}.']


def speed_summary(accelerator: Mapping[str, Any]) -> list[str]:
  """Returns our speed as a multiple of PyTorch's, on a GPU and on two CPUs."""
  rows = [
    (
      *(accelerator['machine']['device'], row['network'], row['stage']),
      f'{row["images_per_second"]:,.0f}',
      *(f'{row["ratios"][side]:.2f}' for side in SIDES),
    )
    for row in accelerator['rows']
    if row.get('ratios')
  ]
  for name in ('peer', 'peer_avx512'):
    cpu = documents.read(str(DOCS / 'results' / f'{name}.json'))
    machine = (
      f'{cpu["machine"]["cores"]} cores of {cpu["machine"]["processor"]}'
    )
    for row in cpu['rows']:
      ratios = row['ratios']
      best = min(v for k, v in ratios.items() if k.startswith('optimised'))
      speed = f'{row["images_per_second"]["ours"]:.1f}'
      rows.append(
        (
          *(machine, 'wrn16_4', row['stage'], speed),
          *(f'{ratios["published"]:.2f}', f'{best:.2f}', ''),
        )
      )
  headers = 'machine', 'network', 'stage', 'images/s'
  headers += tuple(f'here / {side}' for side in SIDES)
  return [documents.markdown_table(headers, rows, left=3)]


def experiment_table(document: Mapping[str, Any], view: str) -> list[str]:
  """Returns a view of an experiment."""
  if document.get('what') == 'accelerator speed' and view == 'summary':
    return speed_summary(document)
  if document.get('what') == 'few classes':
    return importlib.import_module('experiments.few_classes').table(document)
  if document.get('what') == 'cifar10 budget':
    module = importlib.import_module('experiments.cifar10_budget')
    return module.table(document, view)
  if 'table' in document:  # stored with what it was made of
    return document['table']
  return importlib.import_module('experiments.tables').table(document, view)


def survival_table(document: Mapping[str, Any], view: str) -> list[str]:
  """Returns the table of a campaign of interruptions."""
  del view
  return importlib.import_module('tests.survival.table').lines(document)


TABLES = {
  'run': run_table,
  'benchmark': benchmark_table,
  'experiment': experiment_table,
  'survival': survival_table,
}


def table(marker: str, *, with_command: bool = True) -> str:
  """Returns a marker's document as a Markdown table, caption and command."""
  name, _, view = marker.partition('__')
  path = DOCS / 'results' / f'{name}.json'
  if not path.exists():
    return ''
  document = documents.read(str(path))
  lines = TABLES[document['kind']](document, view)
  if not with_command:
    return '\n'.join(lines) + '\n'
  command = document['command']
  for old, new in RENAMED.items():
    command = command.replace(old, new)
  return '\n'.join([*lines, '', '```sh', command, '```']) + '\n'


def generate(page: pathlib.Path) -> str:
  """Returns a page's text with every table generated from its document.

  README is short: its tables stand without their commands, which are on the
  pages that it links.
  """

  def replace(match: re.Match) -> str:
    lines = table(match[1], with_command=page.name != 'README.md')
    return f'<!-- table: {match[1]} -->\n{lines}<!-- end -->'

  return PATTERN.sub(replace, page.read_text())


def main() -> None:
  """Writes or checks the tables."""
  old = {page: page.read_text() for page in PAGES}
  new = {page: generate(page) for page in PAGES}
  changed = [page for page in PAGES if new[page] != old[page]]
  if '--check' in sys.argv:
    names = [page.name for page in changed]
    sys.exit(f'{names}: tables out of date' if names else 0)
  for page in changed:
    page.write_text(new[page])


if __name__ == '__main__':
  main()
