"""Writes the table of extension points in docs/architecture.md.

    python docs/tools/places.py            writes it
    python docs/tools/places.py --check    exits with 1 if it is out of date

Files are those of the examples inside of the package; lines are looked up.
"""

import pathlib
import re
import sys
from typing import NamedTuple

import tabulate

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGE = ROOT / 'docs' / 'architecture.md'
BLOCK = re.compile(r'<!-- places -->\n.*?<!-- end -->', re.DOTALL)


class Extension(NamedTuple):
  """Where one kind of part is added.

  Attributes:
    kind: what is added.
    file: of an example.
    text: the line of the example in it.
    write: the places that one writes.
    recipe: its heading in docs/recipes.md.
  """

  kind: str
  file: str
  text: str
  write: tuple[str, ...]
  recipe: str


CONFIG = 'its name in a config'
EXTENSIONS = (
  Extension(
    'loss',
    'dhat_jax/losses/adversarial.py',
    "@register('trades')",
    ('a registered function', CONFIG),
    'a-loss',
  ),
  Extension(
    'training attack',
    'dhat_jax/attacks/training.py',
    "register('fgsm')(",
    ('a registered function', CONFIG),
    'a-training-attack',
  ),
  Extension(
    'evaluation attack',
    'dhat_jax/evaluation/attacks.py',
    "@register('pgd_<steps>')",
    ('a registered function', CONFIG),
    'an-evaluation-attack',
  ),
  Extension(
    'backbone',
    'dhat_jax/models/wide_resnet.py',
    'class WideResNet:',
    ('a registered class', CONFIG),
    'a-backbone',
  ),
  Extension(
    'aggregator',
    'dhat_jax/models/aggregator.py',
    "@register('classwise')",
    ('a registered class', CONFIG),
    'an-aggregator',
  ),
  Extension(
    'data set',
    'dhat_jax/datasets/loaders.py',
    "@register('digits')",
    ('a registered function', CONFIG),
    'a-data-set',
  ),
  Extension(
    'mixed-in data',
    'dhat_jax/datasets/batches.py',
    'class ShuffledSplit:',
    ('a batch source', 'the `make_batches` of a data set'),
    'mixed-in-data',
  ),
  Extension(
    'schedule',
    'dhat_jax/training/schedules.py',
    "@SCHEDULES.register('cosine')",
    ('a registered function', CONFIG),
    'a-schedule-and-an-optimiser',
  ),
  Extension(
    'optimiser',
    'dhat_jax/training/optim.py',
    "@OPTIMIZERS.register('sgd')",
    ('a registered function', CONFIG),
    'a-schedule-and-an-optimiser',
  ),
  Extension(
    'augmentation',
    'dhat_jax/training/augment/shifts.py',
    'def crop_flip(',
    ('a registered function', CONFIG),
    'an-augmentation',
  ),
  Extension(
    'weight perturbation',
    'dhat_jax/training/perturbation.py',
    "@register('none')",
    ('a registered function', CONFIG),
    'a-weight-perturbation',
  ),
  Extension(
    'third output',
    'dhat_jax/models/outputs.py',
    "'second': Output(",
    ('a row of the table', 'its stage in a config', 'the list of stages'),
    'a-third-output',
  ),
)


def line_of(file: str, text: str) -> int:
  """Returns the number of the one line that begins with a text."""
  lines = (ROOT / file).read_text().splitlines()
  (number,) = [
    index
    for index, line in enumerate(lines, 1)
    if line.strip().startswith(text)
  ]
  return number


def table() -> str:
  """Returns the table as Markdown."""
  rows = [
    [
      f'[{extension.kind}](recipes.md#{extension.recipe})',
      f'`{extension.file}:{line_of(extension.file, extension.text)}`',
      ', '.join(extension.write),
      len(extension.write),
    ]
    for extension in EXTENSIONS
  ]
  headers = ['to add', 'example', 'write', 'places']
  return tabulate.tabulate(rows, headers, tablefmt='pipe')


def main() -> None:
  """Writes or checks the table."""
  old = PAGE.read_text()
  new = BLOCK.sub(
    lambda _: f'<!-- places -->\n{table()}\n<!-- end -->', old, count=1
  )
  if '--check' in sys.argv:
    sys.exit(0 if new == old else f'{PAGE}: out of date')
  PAGE.write_text(new)


if __name__ == '__main__':
  main()
