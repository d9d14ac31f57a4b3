"""Writes the estimates of docs/scaling.md and docs/results.md.

    python docs/tools/scaling.py            write them
    python docs/tools/scaling.py --check    exit with 1 if they are out of date
    python docs/tools/scaling.py --measure  compile, and keep what it holds

A model, not a measurement: see the pages for what it assumes.
"""

import dataclasses
import pathlib
import re
import sys

import jax

DOCS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent))
from dhat_jax import from_config  # noqa: E402
from dhat_jax.benchmark import training  # noqa: E402
from dhat_jax.configs import cifar10  # noqa: E402
from dhat_jax.runtime import documents  # noqa: E402
from dhat_jax.training import cost  # noqa: E402
from dhat_jax.training.stages import initial_state  # noqa: E402

PAGES = (DOCS / 'scaling.md', DOCS / 'results.md')
MEMORY = DOCS / 'results' / 'memory_wrn34_10.json'
PATTERN = re.compile(r'<!-- scaling: (\w+) -->\n.*?<!-- end -->', re.DOTALL)

EFFICIENCY = 0.4  # of the peak; assumed
LATENCY = 20e-6  # seconds of an all-reduce of no bytes; assumed
IMAGES = 50_000
COUNTS = (1, 8, 64, 512)
MEASURED = (16, 32)  # images
TEST_IMAGES = 10_000
ROBUST = 0.55  # share of images that later attacks have to try; assumed
# Forward passes per image of the standard AutoAttack; a gradient counts as two.
FIRST_PASSES = 100 * 3  # APGD-CE, on all images
LATER_PASSES = 9 * 100 * 3 + 9 * 100 * 4 + 5000  # APGD-T, FAB-T, Square


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """Published figures.

  Attributes:
    name: of the accelerator.
    peak: bfloat16 operations per second.
    memory: bytes.
    bandwidth: bytes per second that one can send in an all-reduce.
  """

  name: str
  peak: float
  memory: float
  bandwidth: float


ACCELERATORS = (
  Accelerator('NVIDIA H200', 989e12, 141e9, 50e9),
  Accelerator('TPU v4', 275e12, 32 * 2**30, 300e9),
  Accelerator('TPU v5e', 197e12, 16 * 2**30, 200e9),
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a stage costs.

  Attributes:
    epochs: of the config.
    operations: per image, of a training step.
    trained: number of parameters that are trained.
    parameters: number of all parameters.
    norms: number of batch norms whose statistics are synchronised.
    channels: of these together.
  """

  epochs: float
  operations: float
  trained: int
  parameters: int
  norms: int
  channels: int

  @property
  def all_reduce_bytes(self) -> int:
    """Bytes of a step that are summed over the devices.

    Gradients in float32; and of two forward passes (clean and adversarial
    images) two statistics per channel, forward and backward.
    """
    return 4 * (self.trained + 2 * 2 * 2 * self.channels)

  @property
  def all_reduces(self) -> int:
    """All-reduces of a step: gradients, count of images, batch norms."""
    return 2 + 2 * 2 * self.norms


def get_config(backbone='wrn34_10'):
  """Returns the config of the paper's experiment."""
  return cifar10.get_config(f'trades_{backbone}')


def part_costs(config):
  """Returns the multiply-adds per image of each part of a config's network."""
  return cost.parts(
    from_config.make_network(config), from_config.image_shape(config)
  )


def stage_cost(config, name):
  """Counts a stage of a config."""
  stage = training.make_stage(config, name, 128)
  image_shape = from_config.image_shape(config)
  state = jax.eval_shape(lambda: initial_state(stage, image_shape))
  parts = [part for part in stage.role.trains if part in state.batch_stats]
  statistics = jax.tree.leaves({p: state.batch_stats[p] for p in parts})
  trained = {part: state.params[part] for part in stage.role.trains}

  def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  costs = cost.parts(stage.net, image_shape)
  steps = stage.attack_steps
  return Cost(
    epochs=config[name].epochs,
    operations=2 * cost.needed(costs, stage.role, stage.loss, steps),
    trained=size(trained),
    parameters=size(state.params),
    norms=len(statistics) // 2,
    channels=size(statistics) // 2,
  )


def step_seconds(cost, accelerator, devices, batch_size):
  """Arithmetic, then the all-reduces: nothing overlaps.

  A ring sends 2 (n - 1) / n of the bytes over each device's link.
  """
  compute = cost.operations * batch_size / devices
  compute /= EFFICIENCY * accelerator.peak
  if devices == 1:
    return compute
  sent = 2 * (devices - 1) / devices * cost.all_reduce_bytes
  return compute + sent / accelerator.bandwidth + LATENCY * cost.all_reduces


def hours(costs, accelerator, devices, batch_size):
  """All stages, without validation and evaluation."""
  return sum(
    cost.epochs
    * (IMAGES // batch_size)
    * step_seconds(cost, accelerator, devices, batch_size)
    for cost in costs.values()
  ) / (60 * 60)


def memory_bytes(cost, images):
  """Parameters, momentum and gradients; what the step holds per image.

  The latter is the slope of the temporaries of two batch sizes, in float32,
  halved for bfloat16.
  """
  held = documents.read(str(MEMORY))['temporaries']
  (small, low), (large, high) = ((int(n), size) for n, size in held.items())
  per_image = (high - low) / (large - small) / 2
  return 4 * (cost.parameters + 2 * cost.trained) + per_image * images


def measure():
  """Compiles the step of the first stage for two batch sizes, here."""
  config = get_config()
  held = {
    size: training.memory(training.make_trainer(config, 'main_head', size))
    for size in MEASURED
  }
  record = {
    'config': config.name,
    'stage': 'main_head',
    'temporaries': {size: sizes['temporaries'] for size, sizes in held.items()},
  }
  command = 'python docs/tools/scaling.py --measure'
  documents.write(
    str(MEMORY), documents.document('benchmark', record, command=command)
  )


def stages_table(costs):
  """What each stage costs, whatever it runs on."""
  headers = (
    'stage',
    'epochs',
    'GFLOP per image',
    'trained parameters, millions',
    'all-reduce per step, MB',
    'all-reduces per step',
  )
  rows = [
    (
      name,
      f'{cost.epochs:g}',
      f'{cost.operations / 1e9:.0f}',
      f'{cost.trained / 1e6:.2f}',
      f'{cost.all_reduce_bytes / 1e6:.1f}',
      cost.all_reduces,
    )
    for name, cost in costs.items()
  ]
  return documents.markdown_table(headers, rows)


def time_table(costs, per_device):
  """Hours and step time; `per_device` None for a global batch of 128."""
  main = costs['main_head']
  headers = (
    'accelerator',
    'devices',
    'global batch',
    'step of `main_head`, s',
    'of that all-reduce',
    'memory per device, GB',
    'all stages, hours',
  )
  rows = []
  for accelerator in ACCELERATORS:
    for devices in COUNTS:
      batch = 128 if per_device is None else per_device * devices
      if batch % devices or batch > IMAGES:
        reason = (
          'the batch does not divide'
          if batch % devices
          else ('larger than the training set')
        )
        rows.append((accelerator.name, devices, batch, reason, '', '', ''))
        continue
      seconds = step_seconds(main, accelerator, devices, batch)
      alone = step_seconds(main, accelerator, 1, batch // devices)
      memory = memory_bytes(main, batch // devices)
      fits = '' if memory < accelerator.memory else ' (does not fit)'
      rows.append(
        (
          accelerator.name,
          devices,
          batch,
          f'{seconds:.4f}',
          f'{100 * (1 - alone / seconds):.0f} %',
          f'{memory / 1e9:.1f}{fits}',
          f'{hours(costs, accelerator, devices, batch):.1f}',
        )
      )
  return documents.markdown_table(headers, rows)


def autoattack_hours(operations, accelerator):
  """The standard AutoAttack on the test set, given a forward pass."""
  passes = FIRST_PASSES + ROBUST * LATER_PASSES
  seconds = TEST_IMAGES * passes * operations / (EFFICIENCY * accelerator.peak)
  return seconds / (60 * 60)


def experiment_table(costs):
  """What the comparison costs at the paper's size, on one accelerator."""
  accelerator = ACCELERATORS[0]
  config = get_config()
  parts = part_costs(config)
  single = 2 * (parts['trunk'] + parts['main_head'])
  dual = 2 * sum(parts.values())
  wide_config = get_config('wrn34_14')
  wide_config.stages = ('main_head',)
  wide = {'main_head': stage_cost(wide_config, 'main_head')}
  wide_parts = part_costs(wide_config)
  wide_forward = 2 * (wide_parts['trunk'] + wide_parts['main_head'])
  rows = {
    'WRN-34-10: single head, DH-AT `pairwise` and `mean`': (
      hours(costs, accelerator, 1, 128),
      autoattack_hours(single + 2 * dual, accelerator),
    ),
    'WRN-34-14: single head, wide': (
      hours(wide, accelerator, 1, 128),
      autoattack_hours(wide_forward, accelerator),
    ),
  }
  rows['both, one seed'] = tuple(map(sum, zip(*rows.values(), strict=True)))
  headers = (
    'what',
    f'training, hours of one {accelerator.name}',
    'AutoAttack, hours',
    'together',
  )
  return documents.markdown_table(
    headers,
    [
      (name, f'{train:.1f}', f'{attack:.1f}', f'{train + attack:.1f}')
      for name, (train, attack) in rows.items()
    ],
  )


def tables():
  """All tables of the pages, by name."""
  config = get_config()
  costs = {name: stage_cost(config, name) for name in config.stages}
  return {
    'stages': stages_table(costs),
    'strong': time_table(costs, None),
    'weak': time_table(costs, 128),
    'experiment': experiment_table(costs),
  }


def main():
  """Writes or checks the pages, or measures."""
  if '--measure' in sys.argv:
    measure()
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
