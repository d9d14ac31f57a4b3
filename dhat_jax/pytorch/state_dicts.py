"""Converts PyTorch state dicts to Flax variables and back; reads and writes.

`.pt`, `.pth`, `.tar`, `.bin` and `.ckpt` files need PyTorch (the extra
[oracle]). `.npz` files, with one array per key, do not.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.pytorch import fitting, jax_module, keys, names, torch_files
from dhat_jax.runtime import files
from dhat_jax.runtime.files import reading

_SUFFIXES = ('.npz', '.pt', '.pth', '.tar', '.bin', '.ckpt')


def _as_numpy(key: str, value: Any) -> np.ndarray:
  """Converts an array of any library, also PyTorch's bfloat16 and sparse.

  Raises:
    ValueError: not an array of real numbers; the error names the key.
  """
  if hasattr(value, 'detach'):
    value = _dense(key, value)
  array = np.asarray(value)
  if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
    raise ValueError(f'{key}: got {array.dtype}, expected numbers')
  if np.iscomplexobj(array):
    raise ValueError(f'{key}: got complex numbers, expected real ones')
  return array


def _dense(key: str, tensor: Any) -> Any:
  """Returns a PyTorch tensor that NumPy can convert."""
  if tensor.is_quantized:
    raise ValueError(
      f'{key}: got a quantised tensor, expected floating point; save the '
      'network as it was before its quantisation'
    )
  if tensor.is_meta:
    raise ValueError(f'{key}: got a tensor on the device meta, without numbers')
  tensor = tensor.detach().cpu()
  if str(tensor.layout) != 'torch.strided':
    tensor = tensor.to_dense()
  return tensor.float() if tensor.is_floating_point() else tensor


def from_torch(
  state_dict: Mapping[str, Any],
  model: DualHeadNet,
  *,
  image_channels: int | None = None,
) -> dict[str, Any]:
  """Converts a PyTorch state dict; `dhat_jax.pytorch.names` has its keys.

  A prefix that all keys share (`module.`, `_orig_mod.`, `model.`, ...) and
  `num_batches_tracked` are accepted. So is a second head that is stored as a
  whole network, if its trunk equals the main head's, which feeds it. So are the
  mean and the standard deviation of images, if the model has the same. The
  block `sub_block1`, which TRADES' code stores but never runs, is accepted with
  a warning.

  Args:
    state_dict: {key: array} of NumPy, PyTorch or JAX.
    model: the network; its backbone, attach point, aggregator, outputs and
      number of classes determine the expected keys.
    image_channels: of the images; None: those of the first convolution in the
      state dict.

  Returns:
    {'params': ..., 'batch_stats': ...} for `model.apply`, float32 on the host.

  Raises:
    ValueError: keys are missing, surplus or misshapen; NaN or infinity; not an
      array of real numbers.
  """
  arrays = {key: _as_numpy(key, value) for key, value in state_dict.items()}
  if image_channels is None:
    image_channels = _image_channels(arrays)
  entries = names.entries(model, image_channels)
  arrays = keys.plain_keys(arrays, entries)
  fitting.check_state_dict(arrays, entries, model, image_channels)
  with np.errstate(over='ignore'):  # what overflows is infinite, and named
    arrays = {key: arrays[key].astype(np.float32) for key in entries}
  fitting.check_numbers(arrays)
  variables = {}
  for key, entry in entries.items():
    node = variables
    for name in entry.path[:-1]:
      node = node.setdefault(name, {})
    node[entry.path[-1]] = np.array(
      entry.layout.to_flax(arrays[key]), np.float32, order='C'
    )
  return variables


def _image_channels(arrays: Mapping[str, np.ndarray]) -> int:
  """Returns how many channels the first convolution reads; 3 without one."""
  for key, array in arrays.items():
    if names.is_first_conv(key) and array.ndim == 4:
      return array.shape[1]
  return 3


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
    ValueError: arrays are missing, surplus or misshapen; NaN or infinity.
  """
  flat = {
    tuple(part.key for part in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))
  }
  first = flat.get(('params', 'trunk', 'conv', 'kernel'))
  entries = names.entries(
    model, np.shape(first)[2] if np.ndim(first) == 4 else 3
  )
  fitting.check_shapes(
    {'/'.join(path): np.shape(leaf) for path, leaf in flat.items()},
    {'/'.join(entry.path): entry.shape for entry in entries.values()},
  )
  state_dict = {
    key: np.array(
      entry.layout.to_torch(_as_numpy(key, flat[entry.path])),
      np.float32,
      order='C',
    )
    for key, entry in entries.items()
  }
  fitting.check_numbers(state_dict)
  state_dict |= {key: np.zeros((), np.int64) for key in names.counters(entries)}
  return dict(sorted(state_dict.items()))


def read_state_dict(path: str, entry: str | None = None) -> dict[str, Any]:
  """Reads a state dict, also one inside of a larger checkpoint.

  Args:
    path: `.npz`, or a PyTorch file, from which only tensors, plain containers
      and harmless classes are unpickled.
    entry: which of several state dicts in it: 'ema'; default: the likeliest by
      its name. A log line names it.

  Raises:
    ValueError: an unknown kind of file, a broken file, or no state dict in it.
    ImportError: it needs PyTorch, which is not installed.
  """
  path = files.user_path(path)
  if not _is_npz(path):
    return torch_files.find_state_dict(path, torch_files.load(path), entry)
  with reading(path, 'npz file'), np.load(path, allow_pickle=False) as file:
    return torch_files.find_state_dict(path, dict(file), entry)


def write_state_dict(path: str, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict of NumPy arrays atomically; see `read_state_dict`."""
  path = files.user_path(path)
  if _is_npz(path):
    files.write_npz(path, state_dict)
    return
  torch = jax_module.import_torch()
  tensors = {key: torch.from_numpy(value) for key, value in state_dict.items()}
  with files.replacing(path, 'wb') as file:
    torch.save(tensors, file)


def check_path(path: str) -> None:
  """Raises ValueError for a file whose suffix is not that of a state dict."""
  _is_npz(path)


def _is_npz(path: str) -> bool:
  suffix = os.path.splitext(path)[1].lower()
  if suffix == '.safetensors':
    raise ValueError(
      f'{path}: got suffix {suffix!r}, which is not read; make an npz file of '
      "it: np.savez('model.npz', **safetensors.numpy.load_file(PATH))"
    )
  if suffix not in _SUFFIXES:
    raise ValueError(f'{path}: got suffix {suffix!r}, choices are {_SUFFIXES}')
  return suffix == '.npz'
