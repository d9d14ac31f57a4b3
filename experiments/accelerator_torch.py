"""PyTorch beside JAX on one accelerator: its sides of a training step."""

import functools
import gc
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from dhat_jax.benchmark import peer, timing, training
from dhat_jax.pytorch import jax_module


def torch_device() -> str | None:
  """Returns where PyTorch can be compared with JAX: 'cuda', 'cpu' or None."""
  if importlib.util.find_spec('torch') is None:
    return None
  if jax.default_backend() == 'cpu':
    return 'cpu'
  on_gpu = jax_module.import_torch().cuda.is_available()
  return 'cuda' if on_gpu and jax.default_backend() == 'gpu' else None


def set_up_torch(*, tf32: bool) -> None:
  """Lets PyTorch choose its fastest algorithms.

  Args:
    tf32: whether float32 may be rounded to TF32, as JAX does by default.
  """
  torch = jax_module.import_torch()
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = tf32
  torch.set_float32_matmul_precision('high' if tf32 else 'highest')


def afresh(measure: Callable[[], Any]) -> Any:
  """Measures after what earlier items left is freed."""
  forget()
  return measure()


def forget() -> None:
  """Frees what was compiled, and its memory."""
  jax.clear_caches()
  gc.collect()
  if torch_device() is not None:
    torch = jax_module.import_torch()
    torch.compiler.reset()  # it compiles a function a few times at most
    if torch.cuda.is_available():
      torch.cuda.empty_cache()


def sides(
  config: ml_collections.ConfigDict,
  trainer: training.Trainer,
  compiled: bool,
) -> dict[str, Callable[[], Any]]:
  """Returns what makes each side in PyTorch.

  Args:
    config: the run's config.
    trainer: our side.
    compiled: whether one of them is compiled.
  """
  from dhat_jax.benchmark import torch_steps

  set_up_torch(tf32=True)
  make = peer.side_maker(config, trainer)
  options = {
    'device': torch_device(),
    'channels_last': True,
    'bfloat16': config.model.dtype == 'bfloat16',
  }
  makers = {
    'optimised': functools.partial(make, torch_steps.Optimised, **options)
  }
  if compiled:
    makers['compiled'] = functools.partial(
      make, torch_steps.Optimised, compiled=True, **options
    )
  makers['published'] = functools.partial(
    make, torch_steps.Published, device=torch_device()
  )
  return makers


def ready(
  makers: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, Any], dict[str, float], dict[str, float], dict[str, str]]:
  """Makes sides in PyTorch and calls each once.

  Args:
    makers: of `sides`.

  Returns:
    ({side: what trains one step}, {side: its first loss}, {side: seconds of
    the first step, with compiling}, {side: why it failed}).
  """
  steps, losses, first_seconds, errors = {}, {}, {}, {}
  for name, make in makers.items():
    try:
      side = make()
      first_seconds[name] = timing.seconds(
        lambda name=name, side=side: losses.update({name: side()})
      )
      steps[name] = side
    except Exception as error:  # the others are worth measuring
      errors[name] = f'{type(error).__name__}: {error}'[:500]
  return steps, losses, first_seconds, errors
