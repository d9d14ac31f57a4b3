"""What training on CIFAR-10 costs here, before an experiment is chosen.

    python -m experiments.cifar10_budget --out=docs/results/cifar10_budget.json

Steps of TRADES, stage 1, on random images; small networks that take turns. From
the fastest network's rate and the multiply-adds of `experiments.cifar10` follow
the hours of each of its rows.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from dhat_jax import main as command
from dhat_jax.benchmark import training
from dhat_jax.runtime import cli, documents, files, provenance
from experiments import cifar10, costs

BACKBONES = ('wrn10_1', 'wrn10_2', 'wrn16_1')
ATTACK_STEPS = (2, 5)
STAGE = 'main_head'
EPOCHS, IMAGES = 15, 49_000  # of an experiment with all images
SHAPE = 32, 32, 3
SCALE = cifar10.SCALES['cpu']


def problems(
  backbones: Sequence[str], attack_steps: Sequence[int]
) -> list[training.Problem]:
  """Returns what is measured: each backbone with each attack."""
  found = []
  for backbone in backbones:
    for steps in attack_steps:
      config = cifar10.make_config(SCALE, backbone, 0, 'images.npz')
      config[STAGE].attack.steps = steps
      config.dataset.loader = 'tfds'  # whose shape is known without images
      found.append(training.Problem(config, STAGE, SCALE.batch_size))
  return found


def rows_of_the_experiment() -> list[dict[str, Any]]:
  """Returns {run, gmacs}: what each run of a seed trains itself."""
  entries = cifar10.of_seed(SCALE, 0, 'images.npz')
  num_train = SCALE.train_images - cifar10.VALIDATION_SIZE
  found = {}
  for entry in entries:
    run = entry.run
    names = [name for name in run.config.stages if name not in run.shared]
    found[run.name.partition('/')[2]] = sum(
      costs.stage_gmacs(run.config, name, SHAPE, num_train) for name in names
    )
  return [{'run': name, 'gmacs': gmacs} for name, gmacs in found.items()]


def measure(
  *,
  repeats: int,
  backbones: Sequence[str] = BACKBONES,
  attack_steps: Sequence[int] = ATTACK_STEPS,
) -> dict[str, Any]:
  """Returns what the JSON holds.

  Args:
    repeats: timed steps of each network.
    backbones: the first one's rate gives the hours of the experiment.
    attack_steps: of the training's attack.
  """
  chosen = problems(backbones, attack_steps)
  rows = training.measure(chosen, repeats=repeats)
  for row, problem in zip(rows, chosen, strict=True):
    row['backbone'] = problem.config.model.backbone
    seconds = EPOCHS * IMAGES / row['images_per_second']
    row['hours_of_15_epochs'] = seconds / 3600
  first = rows[0]
  rate = first['gflop_per_image'] / 2 * first['images_per_second']
  experiment = rows_of_the_experiment()
  for row in experiment:
    row['hours'] = row['gmacs'] / rate / 3600
  return {'rows': rows, 'experiment': experiment}


def table(document: Mapping[str, Any], view: str) -> list[str]:
  """Returns the Markdown table, with its caption.

  Args:
    document: what `main` wrote.
    view: 'rates', or 'runs' of the experiment.
  """
  if view == 'runs':
    headers = 'run', 'multiply-adds, 1e12', 'hours'
    cells = [
      (row['run'], f'{row["gmacs"] / 1e3:.1f}', f'{row["hours"]:.2f}')
      for row in document['experiment']
    ]
    said = 'What each run of a seed trains itself'
  else:
    headers = 'network', 'attack steps', 'GFLOP/image', 'images/s', 'hours'
    cells = [
      (
        row['backbone'],
        str(row['attack_steps']),
        f'{row["gflop_per_image"]:.2f}',
        f'{row["images_per_second"]:.0f}',
        f'{row["hours_of_15_epochs"]:.1f}',
      )
      for row in document['rows']
    ]
    said = f'Hours: of {EPOCHS} epochs of {IMAGES:,} images, one head'
  return [
    documents.markdown_table(headers, cells, left=1),
    '',
    f'{said}. {provenance.describe(document["machine"])}.',
  ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out', required=True, type=files.user_path, help='JSON file to write'
  )
  parser.add_argument('--repeats', type=int, default=5, help='timed steps')
  return parser.parse_args(arguments)


def main() -> None:
  """Measures, and writes the JSON."""
  options = parse()
  with command.session():
    body = {'what': 'cifar10 budget', **measure(repeats=options.repeats)}
  typed = f'python -m experiments.cifar10_budget --out={options.out}'
  documents.write(
    options.out, documents.document('experiment', body, command=typed)
  )


if __name__ == '__main__':
  with cli.mistakes_in_one_line():
    main()
