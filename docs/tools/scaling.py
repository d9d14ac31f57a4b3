"""Writes the estimates of docs/scaling.md and docs/results.md.

    python docs/tools/scaling.py            write them
    python docs/tools/scaling.py --check    exit with 1 if they are out of date
    python docs/tools/scaling.py --measure  compile, and keep what it holds

A model, not a measurement: see the pages for what it assumes.
"""

import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / 'tools'))
import scaling_model as model  # noqa: E402
from scaling_model import ACCELERATORS  # noqa: E402
from scaling_sources import Figure, weakest  # noqa: E402

from dhat_jax.runtime import documents  # noqa: E402

PAGES = (DOCS / 'scaling.md', DOCS / 'results.md')
PATTERN = re.compile(r'<!-- scaling: (\w+) -->\n.*?<!-- end -->', re.DOTALL)
BATCH = 128
COUNTS = (1, 8, 64, 512)


def stages_table(costs):
  """What each stage costs; all-reduces as counted, and as compiled."""
  chips = [
    accelerator
    for accelerator in ACCELERATORS
    if any(all_reduces_text(cost, accelerator) for cost in costs.values())
  ]
  headers = (
    'stage',
    'epochs',
    'GFLOP per image',
    'trained parameters, millions',
    'all-reduces per step, counted',
    *(f'compiled for {accelerator.name}' for accelerator in chips),
  )
  rows = [
    (
      name,
      f'{cost.epochs:g}',
      f'{cost.step.operations / 1e9:.0f}',
      f'{cost.trained / 1e6:.2f}',
      f'{cost.all_reduces}, {cost.all_reduce_bytes / 1e6:.1f} MB',
      *(all_reduces_text(cost, accelerator) for accelerator in chips),
    )
    for name, cost in costs.items()
  ]
  return documents.markdown_table(headers, rows)


def all_reduces_text(cost, accelerator):
  """Number and bytes of a compiled step's all-reduces; '' where none was."""
  compiled = model.compiled_all_reduces(cost, accelerator)
  return f'{compiled[0]}, {compiled[1] / 1e6:.1f} MB' if compiled else ''


def time_table(costs, per_device):
  """Hours and step time; `per_device` None for a global batch of `BATCH`."""
  headers = (
    'accelerator',
    'devices',
    'global batch',
    'step of `main_head`, s',
    'of that all-reduce',
    'memory per device, GB',
    'all stages, hours',
  )
  rows = [
    time_row(
      costs,
      accelerator,
      devices,
      BATCH if per_device is None else per_device * devices,
    )
    for accelerator in ACCELERATORS
    for devices in COUNTS
  ]
  return documents.markdown_table(headers, rows)


def time_row(costs, accelerator, devices, batch):
  """A row of `time_table`, or why there is none."""
  row = accelerator.name, devices, batch
  if batch % devices:
    return *row, 'the batch does not divide', '', '', ''
  if batch > model.IMAGES:
    return *row, 'larger than the training set', '', '', ''
  main = costs['main_head']
  seconds = model.step_seconds(main, accelerator, devices, batch)
  reduces = model.reduce_seconds(main, accelerator, devices)
  memory = model.memory_bytes(main, accelerator, batch // devices)
  share = f'{100 * reduces.value / seconds.value:.0f} %'
  fits = '' if memory.value < accelerator.memory else ' (does not fit)'
  return (
    *row,
    seconds.text(4),
    f'{share} {reduces.source}' if devices > 1 else share,
    f'{Figure(memory.value / 1e9, memory.source).text(1)}{fits}',
    model.hours(costs, accelerator, devices, batch).text(1),
  )


def experiment_table(costs):
  """What the comparison costs at the paper's size, on one accelerator."""
  accelerator = ACCELERATORS[0]
  config = model.get_config()
  parts = model.part_costs(config)
  single = 2 * (parts['trunk'] + parts['main_head'])
  dual = 2 * sum(parts.values())
  wide_config = model.get_config('wrn34_14')
  wide_config.stages = ('main_head',)
  wide = {'main_head': model.stage_cost(wide_config, 'main_head')}
  wide_parts = model.part_costs(wide_config)
  wide_forward = 2 * (wide_parts['trunk'] + wide_parts['main_head'])
  rows = {
    'WRN-34-10: single head, DH-AT `pairwise` and `mean`': (
      model.hours(costs, accelerator, 1, BATCH),
      model.autoattack_hours(single + 2 * dual),
    ),
    'WRN-34-14: single head, wide': (
      model.hours(wide, accelerator, 1, BATCH),
      model.autoattack_hours(wide_forward),
    ),
  }
  trainings, attacks = zip(*rows.values(), strict=True)
  rows['both, one seed'] = (
    Figure(sum(figure.value for figure in trainings), weakest(trainings)),
    sum(attacks),
  )
  headers = (
    'what',
    f'training, hours of one {accelerator.name}',
    'AutoAttack, hours',
    'together',
  )
  return documents.markdown_table(
    headers,
    [
      (name, train.text(1), f'{attack:.0f} a', f'{train.value + attack:.0f}')
      for name, (train, attack) in rows.items()
    ],
  )


def tables():
  """All tables of the pages, by name."""
  config = model.get_config()
  costs = {name: model.stage_cost(config, name) for name in config.stages}
  return {
    'stages': stages_table(costs),
    'strong': time_table(costs, None),
    'weak': time_table(costs, BATCH),
    'experiment': experiment_table(costs),
  }


def main():
  """Writes or checks the pages, or measures."""
  if '--measure' in sys.argv:
    model.measure()
    return
  by_name = tables()
  for page in PAGES:
    old = page.read_text()
    new = PATTERN.sub(
      lambda match: (
        f'<!-- scaling: {match[1]} -->\n{by_name[match[1]]}\n<!-- end -->'
      ),
      old,
    )
    if '--check' in sys.argv and new != old:
      sys.exit(f'{page.name} is out of date')
    page.write_text(new)


if __name__ == '__main__':
  main()
