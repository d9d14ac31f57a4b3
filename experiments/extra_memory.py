"""The memory that generated images take: before, opened, after many batches.

    python -m experiments.extra_memory --gigabytes=5

It writes an npz file of so many images of 32 x 32 pixels, mixes them into
batches of 512 (fraction .7) with 50,000 others, and removes the file. Linux
only. The output is one JSON object, in MB; `file` is the part of `resident`
that the system could drop, since it is in the file.
"""

import argparse
import json
import os
import tempfile
import time
import zipfile

import numpy as np

from dhat_jax.datasets.base import Split
from dhat_jax.datasets.batches import prefetch
from dhat_jax.datasets.extra import ExtraImages, MixedBatches

SHAPE = (32, 32, 3)
CLASSES = 10
OWN_IMAGES = 50_000
# Images that are written at once.
CHUNK = 10_000


def write(path: str, count: int) -> None:
  """Writes `count` images and labels, never more than a chunk in memory."""
  rng = np.random.default_rng(0)
  chunk = rng.integers(0, 256, (CHUNK, *SHAPE), np.uint8).tobytes()
  size = int(np.prod(SHAPE))
  arrays = {'image': (np.uint8, (count, *SHAPE)), 'label': (np.int64, (count,))}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, (dtype, shape) in arrays.items():
      header = {
        'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)),
        'fortran_order': False,
        'shape': shape,
      }
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        if name == 'label':
          member.write(np.sort(rng.integers(0, CLASSES, count)).tobytes())
          continue
        for start in range(0, count, CHUNK):
          member.write(chunk[: size * min(CHUNK, count - start)])


def memory() -> dict[str, int]:
  """Returns this process's memory in MB, as Linux counts it."""
  with open('/proc/self/status') as file:
    fields = dict(line.split(':', 1) for line in file)
  names = {'resident': 'VmRSS', 'file': 'RssFile', 'highest': 'VmHWM'}
  return {
    name: round(int(fields[field].split()[0]) / 1024)
    for name, field in names.items()
  }


def measure(path: str, num_steps: int, batch_size: int = 512) -> dict:
  """Opens a file and makes batches with it, prefetched as in a run."""
  own = Split(
    np.zeros((OWN_IMAGES, *SHAPE), np.uint8), np.zeros(OWN_IMAGES, np.int32)
  )
  own.images[:] = 1  # so that it is in memory
  result = {'before': memory()}
  started = time.perf_counter()
  extra = ExtraImages(path, num_classes=CLASSES)
  result |= {'opened': memory(), 'images': len(extra)}
  result['open_secs'] = round(time.perf_counter() - started, 2)
  started = time.perf_counter()
  extra.digest()
  result['digest_secs'] = round(time.perf_counter() - started, 2)
  source = MixedBatches(
    own, batch_size=batch_size, seed=0, extra=extra, fraction=0.7
  )
  started = time.perf_counter()
  for batch in prefetch(source.batch(step) for step in range(num_steps)):
    batch['images'].sum()  # as a step would read it
  seconds = (time.perf_counter() - started) / num_steps
  result['batch_ms'] = round(1000 * seconds, 1)
  return result | {'batches': num_steps, 'after': memory()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--gigabytes', type=float, default=5)
  parser.add_argument('--num_steps', type=int, default=500)
  parser.add_argument('--folder', help='for the file; default: /tmp')
  return parser.parse_args(arguments)


def main() -> None:
  """Writes, measures, removes."""
  options = parse()
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    path = os.path.join(folder, 'generated.npz')
    write(path, max(1, int(options.gigabytes * 1e9 / np.prod(SHAPE))))
    result = measure(path, options.num_steps)
    result['file_gigabytes'] = round(os.path.getsize(path) / 1e9, 3)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  main()
