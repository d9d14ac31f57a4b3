"""PyTorch state dicts: to and from Flax variables, to and from files.

`.pt`, `.pth`, `.tar` and `.bin` files are PyTorch's and need it (the extra
[oracle]); `.npz` files, one array per key, do not.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.pytorch import jax_module, names
from dhat_jax.runtime import files


def _as_numpy(value: Any) -> np.ndarray:
  """Converts an array of any library, PyTorch's bfloat16 included."""
  if hasattr(value, 'detach'):
    value = value.detach().cpu()
    value = value.float() if value.is_floating_point() else value
  return np.asarray(value)


def _strip_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Removes the prefix that `DataParallel` adds to all keys."""
  prefix = 'module.'
  if state_dict and all(key.startswith(prefix) for key in state_dict):
    return {key.removeprefix(prefix): v for key, v in state_dict.items()}
  return dict(state_dict)


def from_torch(
  state_dict: Mapping[str, Any],
  model: DualHeadNet,
  *,
  image_channels: int | None = None,
) -> dict[str, Any]:
  """Converts a PyTorch state dict; `dhat_jax.pytorch.names` has its keys.

  A prefix `module.` on all keys and `num_batches_tracked` are accepted. So is
  a second head that is stored as a whole network, if its trunk equals the
  main head's, which is the one that feeds it; and, with a warning, the block
  `sub_block1` that TRADES' code stores but never runs.

  Args:
    state_dict: {key: array} of NumPy, PyTorch or JAX.
    model: the network: its backbone, attach point, aggregator, outputs and
      number of classes say which keys are expected.
    image_channels: of the images; None: as many as the first convolution of
      the state dict has.

  Returns:
    {'params': ..., 'batch_stats': ...} for `model.apply`, float32 on the host.

  Raises:
    ValueError: keys are missing, surplus or misshapen; all are listed.
  """
  arrays = {k: _as_numpy(v) for k, v in _strip_module(state_dict).items()}
  if image_channels is None:
    first = arrays.get('conv1.weight', arrays.get('WRN1.conv1.weight'))
    image_channels = first.shape[1] if np.ndim(first) == 4 else 3
  entries = names.entries(model, image_channels)
  names.check_state_dict(arrays, entries)
  variables = {}
  for key, entry in entries.items():
    node = variables
    for name in entry.path[:-1]:
      node = node.setdefault(name, {})
    node[entry.path[-1]] = np.array(
      entry.layout.to_flax(arrays[key]), np.float32, order='C'
    )
  return variables


def to_torch(
  variables: Mapping[str, Any], model: DualHeadNet
) -> dict[str, np.ndarray]:
  """Converts Flax variables to a PyTorch state dict; inverts `from_torch`.

  Args:
    variables: {'params': ..., 'batch_stats': ...} of `model`.
    model: the network.

  Returns:
    {key: float32 array}, and an int64 zero for each `num_batches_tracked`.

  Raises:
    ValueError: arrays are missing, surplus or misshapen; all are listed.
  """
  flat = {
    tuple(part.key for part in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))
  }
  first = flat.get(('params', 'trunk', 'conv', 'kernel'))
  entries = names.entries(
    model, np.shape(first)[2] if np.ndim(first) == 4 else 3
  )
  names.check_shapes(
    {'/'.join(path): np.shape(leaf) for path, leaf in flat.items()},
    {'/'.join(entry.path): entry.shape for entry in entries.values()},
  )
  state_dict = {
    key: np.array(
      entry.layout.to_torch(_as_numpy(flat[entry.path])), np.float32, order='C'
    )
    for key, entry in entries.items()
  }
  state_dict |= {key: np.zeros((), np.int64) for key in names.counters(entries)}
  return dict(sorted(state_dict.items()))


def read_state_dict(path: str) -> dict[str, Any]:
  """Reads a state dict, also one that is wrapped with other things.

  Args:
    path: `.npz`, or a file of PyTorch's, of which only tensors and plain
      containers are unpickled.

  Raises:
    ValueError: no such kind of file, or no state dict in it.
    ImportError: it needs PyTorch, which is not installed.
  """
  path = files.user_path(path)
  if _is_npz(path):
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  loaded = jax_module.import_torch().load(
    path, map_location='cpu', weights_only=True
  )
  for wrapper in ('state_dict', 'model', 'model_state_dict', 'net'):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
      loaded = loaded[wrapper]
  if not isinstance(loaded, Mapping) or not all(
    hasattr(value, 'shape') for value in loaded.values()
  ):
    raise ValueError(f'{path}: holds no state dict (no {{name: tensor}})')
  return dict(loaded)


def write_state_dict(path: str, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict of NumPy arrays; see `read_state_dict`."""
  path = files.user_path(path)
  if _is_npz(path):
    np.savez(path, **state_dict)
    return
  torch = jax_module.import_torch()
  torch.save(
    {key: torch.from_numpy(value) for key, value in state_dict.items()}, path
  )


def _is_npz(path: str) -> bool:
  suffix = os.path.splitext(path)[1]
  choices = ('.npz', '.pt', '.pth', '.tar', '.bin')
  if suffix not in choices:
    raise ValueError(f'{path}: got suffix {suffix!r}, choices are {choices}')
  return suffix == '.npz'
