"""Writes the tables of README.md from docs/results/*.json.

    python docs/make_tables.py            write them
    python docs/make_tables.py --check    exit with 1 if they are out of date

Each JSON file holds `results` (a run's results.json) and what a reader needs
to get the same: `command` and `machine`.
"""

import json
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
README = DOCS.parent / 'README.md'
PATTERN = re.compile(r'<!-- table: (\w+) -->\n.*?<!-- end -->', re.DOTALL)


def rows(accuracy, label):
  """The rows of one network: accuracies in percent."""
  for output, row in accuracy.items():
    cells = ' | '.join(f'{100 * value:.1f}' for value in row.values())
    yield f'| {label} | {output} | {cells} |'


def table(name):
  """Returns a results file as a Markdown table with its caption."""
  path = DOCS / 'results' / f'{name}.json'
  if not path.exists():
    return ''
  record = json.loads(path.read_text())
  results = record['results']
  attacks = list(next(iter(results['accuracy'].values())))
  lines = [
    f'| trained | output | {" | ".join(attacks)} |',
    '|---|---|' + '---:|' * len(attacks),
    *rows(results['accuracy'], 'adversarially'),
  ]
  if 'natural' in results:
    lines += rows(results['natural']['accuracy'], 'on clean images only')
  seconds = sum(results['seconds'].values())
  seconds += sum(results.get('natural', {}).get('seconds', {}).values())
  versions = results['versions']
  lines += [
    '',
    f'Accuracy in % on the {results["n_test"]:,} test images of '
    f'{record.get("data_name", results["dataset"])}; epsilon '
    f'{results["epsilon"]:.4g} ({255 * results["epsilon"]:.3g}/255); seed '
    f'{results["seed"]}; {seconds:.0f} s on {record["machine"]}, jax '
    f'{versions["jax"]}. {record["note"]}'.rstrip(),
    '',
    '```sh',
    record['command'],
    '```',
  ]
  return '\n'.join(lines) + '\n'


def generate(text):
  """Returns README's text with every table made anew."""
  return PATTERN.sub(
    lambda match: f'<!-- table: {match[1]} -->\n{table(match[1])}<!-- end -->',
    text,
  )


def main():
  """Writes or checks the tables."""
  text = README.read_text()
  if '--check' in sys.argv:
    sys.exit(0 if generate(text) == text else 'README.md: tables out of date')
  README.write_text(generate(text))


if __name__ == '__main__':
  main()
