"""Writes the tables of README.md and docs/*.md from docs/results/*.json.

    python docs/make_tables.py            write them
    python docs/make_tables.py --check    exit with 1 if they are out of date

A JSON file is what `dhat_jax.benchmark --out` writes, or has its `table` made
already (launch/survival.py), is an experiment's (a marker `<name>__<view>` asks
for `accuracies` or `differences`), or holds `results` (a run's results.json);
beside that what a reader needs to get the same: `command` and `machine`.
"""

import importlib
import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
PAGES = [DOCS.parent / 'README.md', *sorted(DOCS.glob('*.md'))]
PATTERN = re.compile(r'<!-- table: (\w+) -->\n.*?<!-- end -->', re.DOTALL)


def rows(accuracy, label, attacks):
  """The rows of one network: accuracies in percent, empty if not measured."""
  for output, row in accuracy.items():
    cells = ' | '.join(
      f'{100 * row[attack]:.1f}' if attack in row else '' for attack in attacks
    )
    yield f'| {label} | {output} | {cells} |'


def table(name):
  """Returns a results file as a Markdown table with its caption."""
  name, _, view = name.partition('__')
  path = DOCS / 'results' / f'{name}.json'
  if not path.exists():
    return ''
  record = json.loads(path.read_text())
  if 'table' in record:
    lines = record['table']
  elif 'experiment' in record:
    lines = experiments_tables().table(record, view)
  else:
    lines = benchmark_table(record) if 'what' in record else run_table(record)
  return '\n'.join([*lines, '', '```sh', record['command'], '```']) + '\n'


def experiments_tables():
  """The module that knows experiments; it lies beside this folder."""
  sys.path.insert(0, str(DOCS.parent))
  return importlib.import_module('experiments.tables')


def benchmark_table(record):
  """The table and caption of what `dhat_jax.benchmark` measured."""
  module = importlib.import_module(f'dhat_jax.benchmark.{record["what"]}')
  machine = record['machine']
  versions = ', '.join(
    f'{package} {machine["versions"][package]}'
    for package in ('jax', 'torch', 'pyautoattack')
    if package in machine['versions']
  )
  device = machine['device']
  if device == 'cpu':
    device = f'{machine["cores"]} cores of {machine["processor"]}'
  caption = f'Measured on {device}; {versions}'
  if 'repeats' in record:
    caption += f'; medians of {record["repeats"]}'
  return [module.table(record), '', f'{caption}.']


def run_table(record):
  """The table and caption of a run's results."""
  results = record['results']
  accuracy = results['accuracy']
  attacks = list(dict.fromkeys(a for row in accuracy.values() for a in row))
  lines = [
    f'| trained | output | {" | ".join(attacks)} |',
    '|---|---|' + '---:|' * len(attacks),
    *rows(accuracy, 'adversarially', attacks),
  ]
  if 'natural' in results:
    lines += rows(
      results['natural']['accuracy'], 'on clean images only', attacks
    )
  seconds = sum(results['seconds'].values())
  seconds += sum(results.get('natural', {}).get('seconds', {}).values())
  versions = results['versions']
  return [
    *lines,
    '',
    f'Accuracy in % on the {results["n_test"]:,} test images of '
    f'{record.get("data_name", results["dataset"])}; epsilon '
    f'{results["epsilon"]:.4g} ({255 * results["epsilon"]:.3g}/255); seed '
    f'{results["seed"]}; {seconds:.0f} s on {record["machine"]}, jax '
    f'{versions["jax"]}. {record["note"]}'.rstrip(),
  ]


def generate(text):
  """Returns a page's text with every table made anew."""
  return PATTERN.sub(
    lambda match: f'<!-- table: {match[1]} -->\n{table(match[1])}<!-- end -->',
    text,
  )


def main():
  """Writes or checks the tables."""
  old = {page: page.read_text() for page in PAGES}
  new = {page: generate(text) for page, text in old.items()}
  changed = [page for page in PAGES if new[page] != old[page]]
  if '--check' in sys.argv:
    names = [page.name for page in changed]
    sys.exit(f'{names}: tables out of date' if names else 0)
  for page in changed:
    page.write_text(new[page])


if __name__ == '__main__':
  main()
