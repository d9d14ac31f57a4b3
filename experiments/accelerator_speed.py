"""How fast training steps and AutoAttack are, beside PyTorch where it is."""

import copy
import dataclasses
import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from dhat_jax import from_config
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.benchmark import (
  autoattack,
  autoattack_sides,
  peer,
  timing,
  training,
)
from dhat_jax.runtime import devices, documents, settings
from dhat_jax.training import cost
from experiments.accelerator_budget import Item, Slice
from experiments.accelerator_torch import (
  afresh,
  ready,
  set_up_torch,
  sides,
  torch_device,
)

# How far the losses of both sides may be apart, relative to ours. In bfloat16
# each side rounds at other places.
TOLERANCES = {'float32': 0.01, 'bfloat16': 0.05}
BUDGET = Budget(n_iter=20, n_queries=500, n_targets=3)
IMAGES = 256
# That an attack may take with compiling, on both sides; a guess.
ATTACK_SECONDS = 35


def measure_step(
  config: ml_collections.ConfigDict,
  stage: str,
  batch_size: int,
  dtype: str,
  *,
  repeats: int,
  beside_torch: bool,
  compiled: bool,
) -> dict[str, Any]:
  """Times a training step, in turns with a matrix product and with PyTorch.

  Args:
    config: of the network; augmentation is left out.
    stage: its name.
    batch_size: global.
    dtype: of the network.
    repeats: timed steps of each side.
    beside_torch: whether PyTorch trains too.
    compiled: whether that is compiled, too.

  Returns:
    The row of `training.make_row`, with `losses`, `ratios`, ... of PyTorch.
  """
  config = peer.without_augmentation(config)
  config.model.dtype = dtype
  before = _peak_bytes()
  with settings.standard(), timing.no_compilation_cache():
    trainer = training.make_trainer(config, stage, batch_size)
    makers = sides(config, trainer, compiled) if beside_torch else {}
    steps, losses, first_seconds, errors = ready(makers)
    total, count = devices.to_host(trainer())['loss']
    losses = {peer.OURS: float(total / count), **losses}
    product, operations = training.matrix_product(dtype)
    times = timing.alternate(
      {peer.OURS: trainer, **steps, 'product': product},
      repeats=repeats,
      warmup=2,
    )
    peak = operations / min(times.pop('product'))
    row = training.make_row(
      training.Problem(config, stage, batch_size),
      trainer,
      timing.summary(times[peer.OURS]),
      peak,
    )
  row['network'] = config.model.backbone
  row['memory']['peak_before'] = before
  row |= _beside(times, losses, TOLERANCES[dtype])
  row |= {'first_seconds': first_seconds, 'errors': errors}
  row['line'] = _line(row)
  return row


def _peak_bytes() -> int | None:
  """Returns the most that the process has held on its first device so far."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  return statistics.get('peak_bytes_in_use')


def _beside(
  times: Mapping[str, list[float]],
  losses: Mapping[str, float],
  tolerance: float,
) -> dict[str, Any]:
  """Returns what PyTorch's sides took, and whether they computed the same."""
  summaries = {name: timing.summary(values) for name, values in times.items()}
  ours = summaries.pop(peer.OURS)['median']
  gaps = [abs(loss / losses[peer.OURS] - 1) for loss in losses.values()]
  return {
    'losses': dict(losses),
    'agrees': max(gaps) <= tolerance,
    'torch_times': summaries,
    'ratios': {name: s['median'] / ours for name, s in summaries.items()},
  }


def _line(row: Mapping[str, Any]) -> str:
  parts = [
    f'{row["images_per_second"]:.0f} images/s',
    f'{100 * row["utilisation"]:.0f} % of the peak, '
    f'{row["peak_gflops"] / 1e3:.3g} TFLOP/s',
    f'compiled in {row["compile_seconds"]:.0f} s',
    f'{row["memory"]["temporaries"] / 2**30:.2f} GiB',
    *(f'{name} {ratio:.2f} x' for name, ratio in row['ratios'].items()),
    *(f'{name} failed: {error}' for name, error in row['errors'].items()),
  ]
  if not row['agrees']:
    parts.append(f'DIFFERS: losses {row["losses"]}')
  return ', '.join(parts)


def measure_autoattack(
  config: ml_collections.ConfigDict,
  name: str,
  *,
  tf32: bool,
  images: int,
  repeats: int,
  budget: Budget = BUDGET,
) -> dict[str, Any]:
  """Times one of AutoAttack's attacks, in turns with pyautoattack.

  Args:
    config: of the network, which has random weights.
    name: of the attack.
    tf32: whether both sides may round float32 to TF32; else they do not.
    images: how many are attacked.
    repeats: timed runs of each side.
    budget: of both sides.

  Returns:
    The row of `autoattack.compare`.
  """
  device = torch_device()
  set_up_torch(tf32=False)
  with settings.standard():
    problem = autoattack_sides.make_problem(config, None, images)
    torch_net = autoattack_sides.make_torch_twin(problem, device)
    set_up_torch(tf32=tf32)
    row = autoattack.compare(
      name,
      (name,),
      problem,
      torch_net,
      budget,
      min(images, IMAGES),
      repeats,
      device=device,
      precision=None if tf32 else 'highest',
    )
  line = (
    f'here {row["ours"]["median"]:.2f} s, pyautoattack {row["ratio"]:.2f} x, '
    f'compiled in {row["compile_seconds"]:.0f} s'
  )
  return {
    **row,
    'images': images,
    'tf32': tf32,
    'budget': dataclasses.asdict(budget),
    'line': line,
  }


def _estimate(
  gmacs: float, *, beside_torch: bool = False, compiled: bool = False
) -> float:
  """Returns the seconds that a step's item may take.

  Compiling is most of it, and grows with the network. Fitted to what ResNet-18
  and WRN-34-10 took on an H200 with 16 cores.

  Args:
    gmacs: multiply-adds of an image's forward pass, in 1e9.
    beside_torch: whether PyTorch takes part.
    compiled: whether it is compiled, too.
  """
  seconds = 25 + 2.5 * gmacs
  if beside_torch:
    seconds += 22 + 3 * gmacs
  if beside_torch and compiled:
    seconds += 12 + 6 * gmacs
  return seconds


def _gmacs(config: ml_collections.ConfigDict) -> float:
  """Returns the multiply-adds of an image's forward pass, in 1e9."""
  net = from_config.make_network(config)
  costs = cost.parts(net, from_config.image_shape(config))
  return (costs['trunk'] + max(costs.values())) / 1e9


def items(
  configs: Sequence[ml_collections.ConfigDict],
  batch_sizes: Sequence[int],
  *,
  repeats: int,
  compiled: bool,
  images: int = IMAGES,
) -> Iterator[Item]:
  """Yields all that is measured, in the order of its value.

  Args:
    configs: of the networks.
    batch_sizes: global; the first one is compared most.
    repeats: timed steps of each side.
    compiled: whether `torch.compile` takes part.
    images: that AutoAttack attacks.
  """
  has_torch = torch_device() is not None
  first, *others = batch_sizes
  gmacs = {config.model.backbone: _gmacs(config) for config in configs}

  def step(config, stage, size, dtype='bfloat16', beside=False):
    options = {'beside_torch': beside and has_torch, 'compiled': compiled}
    network = config.model.backbone
    estimate = _estimate(gmacs[network], **options)
    name = f'{network}/{stage}/{dtype}/{size}'
    name += '/torch' if options['beside_torch'] else ''
    options['repeats'] = repeats
    measure = functools.partial(
      measure_step, copy.deepcopy(config), stage, size, dtype, **options
    )
    return Item(name, estimate, functools.partial(afresh, measure))

  def attacks(config, *, tf32):
    if not has_torch or importlib.util.find_spec('pyautoattack') is None:
      return
    for name in autoattack_sides.STANDARD:
      measure = functools.partial(
        measure_autoattack,
        config,
        name,
        tf32=tf32,
        images=images,
        repeats=1,
      )
      precision = 'tf32' if tf32 else 'float32'
      yield Item(
        f'{config.model.backbone}/{name}/{precision}/{images}',
        ATTACK_SECONDS,
        functools.partial(afresh, measure),
      )

  for config in configs:
    yield step(config, config.stages[0], first, beside=True)
  yield from (step(configs[0], s, first) for s in configs[0].stages[1:])
  for size in others:
    yield from (step(config, config.stages[0], size) for config in configs)
  for config in configs:
    yield step(config, config.stages[0], first, 'float32')
  yield from attacks(configs[-1], tf32=False)
  for config in configs[1:]:
    yield from (step(config, s, first) for s in config.stages[1:])
  yield from attacks(configs[-1], tf32=True)
  for config in reversed(configs):
    yield from (step(config, s, first, beside=True) for s in config.stages[1:])


SIDES = ('published', 'optimised', 'compiled')


def _step_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  ratios = row['ratios']
  return (
    row['network'],
    row['stage'],
    row['dtype'],
    str(row['batch_size']),
    f'{row["images_per_second"]:,.0f}',
    f'{100 * row["utilisation"]:.0f} %',
    f'{row["compile_seconds"]:.0f}',
    f'{row["memory"]["temporaries"] / 2**30:.1f}',
    *(f'{ratios[side]:.2f}' if side in ratios else '' for side in SIDES),
  )


def _attack_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  return (
    row['item'],
    f'{row["ours"]["median"]:.2f}',
    f'{row["theirs"]["median"]:.2f}',
    f'{row["ratio"]:.2f}',
    f'{row["compile_seconds"]:.0f}',
  )


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the lines of the tables of the rows that `run` measures."""
  steps = [_step_cells(row) for row in rows if 'stage' in row]
  attacks = [_attack_cells(row) for row in rows if 'attack' in row]
  lines = [
    documents.markdown_table(
      (
        'network',
        'stage',
        'dtype',
        'batch',
        'images/s',
        'of peak',
        'compiling, s',
        'temporaries, GiB',
        *(f'speed, here / {side}' for side in SIDES),
      ),
      steps,
      left=3,
    )
  ]
  if attacks:
    headers = 'attack', 'here, s', 'pyautoattack, s', 'ratio', 'compiling, s'
    lines += ['', documents.markdown_table(headers, attacks)]
  return lines


def run(
  part: Slice,
  configs: Sequence[ml_collections.ConfigDict],
  batch_sizes: Sequence[int],
  **options: Any,
) -> None:
  """Measures what fits.

  Args:
    part: takes the rows.
    configs: of the networks.
    batch_sizes: global.
    **options: of `items`.
  """
  part.spend(list(items(configs, batch_sizes, **options)))
