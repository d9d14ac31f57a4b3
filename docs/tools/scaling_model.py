"""The model of docs/scaling.md: what a training step costs on an accelerator.

Figures that were measured or compiled take the place of assumed ones, see
`scaling_sources`.
"""

import dataclasses
import functools
import pathlib
import sys

import jax

DOCS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent))
sys.path.insert(0, str(DOCS / 'tools'))
import scaling_sources as sources  # noqa: E402
from scaling_sources import Figure  # noqa: E402

from dhat_jax import from_config  # noqa: E402
from dhat_jax.benchmark import training  # noqa: E402
from dhat_jax.benchmark.compile_targets import CHIPS  # noqa: E402
from dhat_jax.configs import cifar10  # noqa: E402
from dhat_jax.runtime import documents  # noqa: E402
from dhat_jax.training import cost  # noqa: E402
from dhat_jax.training.stages import initial_state  # noqa: E402

MEMORY = DOCS / 'results' / 'memory_wrn34_10.json'
LATENCY = 20e-6  # seconds of an all-reduce of no bytes; assumed
IMAGES = 50_000
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
    chip: its name as a target of `--what=compile`.
    device: pattern of the name that JAX gives it.
    peak: bfloat16 operations per second, as `--what=compile` has it.
    memory: bytes.
    bandwidth: bytes per second that one can send in an all-reduce.
    float32_peak: float32 operations per second without tensor cores, as
      AutoAttack multiplies; None where nobody publishes it.
  """

  name: str
  chip: str
  device: str
  peak: float
  memory: float
  bandwidth: float
  float32_peak: float | None = None


ACCELERATORS = (
  Accelerator(
    name='NVIDIA H100',
    chip='h100',
    device=r'NVIDIA H100.*',
    peak=CHIPS['h100'].peak,
    memory=80e9,
    bandwidth=50e9,
    float32_peak=CHIPS['h100'].float32_peak,
  ),
  Accelerator(
    name='NVIDIA H200',
    chip='h200',
    device=r'NVIDIA H200.*',
    peak=CHIPS['h100'].peak,
    memory=141e9,
    bandwidth=50e9,
    float32_peak=CHIPS['h100'].float32_peak,
  ),
  Accelerator(
    name='TPU v5e',
    chip='v5e',
    device=r'TPU v5(e| lite)',
    peak=CHIPS['v5e'].peak,
    memory=16e9,
    bandwidth=200e9,
  ),
  Accelerator(
    name='TPU v5p',
    chip='v5p',
    device=r'TPU v5p?',
    peak=CHIPS['v5p'].peak,
    memory=95e9,
    bandwidth=600e9,
  ),
  Accelerator(
    name='TPU v6e',
    chip='v6e',
    device=r'TPU v6(e| lite)',
    peak=CHIPS['v6e'].peak,
    memory=32e9,
    bandwidth=400e9,
  ),
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a stage costs.

  Attributes:
    step: what is trained, with its operations per image.
    epochs: of the config.
    trained: number of parameters that are trained.
    parameters: number of all parameters.
    norms: number of batch norms whose statistics are synchronised.
    channels: of these together.
  """

  step: sources.Step
  epochs: float
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
    step=sources.Step(
      config.model.backbone,
      name,
      2 * cost.needed(costs, stage.role, stage.loss, steps, stage.gradients),
    ),
    epochs=config[name].epochs,
    trained=size(trained),
    parameters=size(state.params),
    norms=len(statistics) // 2,
    channels=size(statistics) // 2,
  )


@functools.cache
def speed_rows():
  """Rows of training steps that were measured on an accelerator."""
  return [
    row
    for row in sources.read_rows('accelerator_speed*.json')
    if 'gflop_per_image' in row
  ]


@functools.cache
def compiled_rows():
  """Rows of what was compiled for accelerators."""
  compiled = sources.read_rows('compile.json')
  return compiled + sources.read_rows('largest.json')


def compute_seconds(cost, accelerator, images):
  """Arithmetic of a step, or what its memory traffic takes at least."""
  rate = sources.rate(
    speed_rows(), cost.step, accelerator.device, images, accelerator.peak
  )
  arithmetic = Figure(cost.step.operations * images / rate.value, rate.source)
  traffic = sources.traffic_seconds(
    compiled_rows(), cost.step, accelerator.chip, images
  )
  if traffic is None or arithmetic.source == sources.MEASURED:
    return arithmetic
  return max(arithmetic, traffic, key=lambda figure: figure.value)


def compiled_all_reduces(cost, accelerator):
  """(number, bytes) of a compiled step's all-reduces, or None."""
  return sources.all_reduces(compiled_rows(), cost.step, accelerator.chip)


def reduce_seconds(cost, accelerator, devices):
  """All-reduces of a step, one after the other.

  A ring sends 2 (n - 1) / n of the bytes over each device's link.
  """
  if devices == 1:
    return Figure(0, sources.COMPILED)
  compiled = compiled_all_reduces(cost, accelerator)
  number, size = compiled or (cost.all_reduces, cost.all_reduce_bytes)
  sent = 2 * (devices - 1) / devices * size
  return Figure(
    sent / accelerator.bandwidth + LATENCY * number,
    sources.COMPILED if compiled else sources.ASSUMED,
  )


def step_seconds(cost, accelerator, devices, batch_size):
  """Arithmetic, then the all-reduces: nothing overlaps."""
  compute = compute_seconds(cost, accelerator, batch_size // devices)
  reduces = reduce_seconds(cost, accelerator, devices)
  return Figure(compute.value + reduces.value, compute.source)


def hours(costs, accelerator, devices, batch_size):
  """All stages, without validation and evaluation."""
  steps = {
    name: step_seconds(cost, accelerator, devices, batch_size)
    for name, cost in costs.items()
  }
  seconds = sum(
    cost.epochs * (IMAGES // batch_size) * steps[name].value
    for name, cost in costs.items()
  )
  return Figure(seconds / (60 * 60), sources.weakest(list(steps.values())))


def memory_bytes(cost, accelerator, images):
  """What a compiled step holds; else parameters, momentum and gradients.

  And the temporaries per image: the slope of two batch sizes in float32 on a
  CPU, halved for bfloat16.
  """
  compiled = sources.memory_bytes(
    compiled_rows(), cost.step, accelerator.chip, images
  )
  if compiled is not None:
    return compiled
  held = documents.read(str(MEMORY))['temporaries']
  (small, low), (large, high) = ((int(n), size) for n, size in held.items())
  per_image = (high - low) / (large - small) / 2
  state = 4 * (cost.parameters + 2 * cost.trained)
  return Figure(state + per_image * images, sources.ASSUMED)


def most_measured(costs):
  """Returns the accelerator of most measured stages whose float32 is known."""

  def measured(accelerator):
    figures = (step_seconds(c, accelerator, 1, 128) for c in costs.values())
    return sum(figure.source == sources.MEASURED for figure in figures)

  known = [each for each in ACCELERATORS if each.float32_peak is not None]
  return max(known, key=measured)


def autoattack_hours(operations, accelerator):
  """The standard AutoAttack on the test set, in float32.

  `operations` are those of a forward pass.
  """
  passes = FIRST_PASSES + ROBUST * LATER_PASSES
  rate = sources.EFFICIENCY * accelerator.float32_peak
  return TEST_IMAGES * passes * operations / rate / (60 * 60)


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
