"""Finds the original archives, or says where to get them."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from dhat_jax.datasets.tfds import INFO_FILE
from dhat_jax.runtime import files
from dhat_jax.runtime.files import DataError, reason

_TIMEOUT_SECS = 10


class DataNotFoundError(FileNotFoundError):
  """No data; the message says where to get it and where to put it."""


def require(
  builder: Any, root: str, manual_dir: str | None, download: bool
) -> None:
  """Raises DataNotFoundError unless all archives exist or can be downloaded.

  Args:
    builder: of TFDS, with `archive_urls`.
    root: TFDS's folder, with earlier downloads.
    manual_dir: folder of archives that were downloaded by hand, or None.
    download: whether the others may be downloaded.
  """
  downloads = os.path.join(root, 'downloads')
  folder = manual_dir or os.path.join(downloads, 'manual')
  missing = [
    url
    for url in builder.archive_urls
    if not os.path.exists(os.path.join(folder, builder.url_infos[url].filename))
    and not _is_downloaded(downloads, url)
  ]
  if not missing:
    return
  reason = _unreachable(missing[0]) if download else 'downloads are turned off'
  if reason is not None:
    raise DataNotFoundError(
      _instructions(builder, missing, root, folder, reason)
    )


def _is_downloaded(downloads: str, url: str) -> bool:
  """Returns whether TFDS has downloaded a URL before."""
  for path in glob.glob(
    os.path.join(glob.escape(downloads), '**', '*.INFO'), recursive=True
  ):
    with contextlib.suppress(OSError, ValueError), open(path) as file:
      if url in json.load(file).get('urls', ()):
        return os.path.exists(path.removesuffix('.INFO'))
  return False


def _unreachable(url: str) -> str | None:
  """Returns why a URL cannot be downloaded, or None if it can.

  TFDS waits for a server without limit; here the limit is 10 seconds.
  """
  import requests

  try:
    with requests.get(url, stream=True, timeout=_TIMEOUT_SECS) as response:
      response.raise_for_status()
  except requests.RequestException as error:
    return f'{type(error).__name__}: {error}'
  return None


def _instructions(
  builder: Any, urls: list[str], root: str, folder: str, reason: str
) -> str:
  name = builder.name
  infos = [builder.url_infos[url] for url in urls]
  by_hand = [os.path.join(folder, info.filename) for info in infos]
  archives = [
    f'  {url}\n  as {info.filename}, SHA-256 {info.checksum}\n'
    for url, info in zip(urls, infos, strict=True)
  ]
  return (
    f'{name}: there is no data, and none can be downloaded.\n'
    f'Looked for a prepared data set: {os.path.join(root, name)}\n'
    f'Looked for archives:            {", ".join(by_hand)}\n'
    f'Could not download:             {reason}\n'
    'Any one of these helps:\n'
    '- where there is a network, download\n'
    f'{"".join(archives)}'
    '  put it into a folder as it is, and give '
    '--config.dataset.manual_dir=FOLDER;\n'
    '- give --config.dataset.data_dir=FOLDER, a folder in which TFDS has '
    f'prepared {name} (it holds {name}/{builder.version}/'
    f'{INFO_FILE}).'
  )


@contextlib.contextmanager
def tidy_downloads(root: str) -> Iterator[None]:
  """Removes the remains of an interrupted download in TFDS's folder."""
  pattern = os.path.join(glob.escape(root), 'downloads', '**', '*.tmp.*')

  def partial() -> set[str]:
    return set(glob.glob(pattern, recursive=True))

  before = partial()
  try:
    yield
  finally:
    for path in partial() - before:
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def clear_errors(name: str, root: str) -> Iterator[None]:
  """Turns errors of TFDS into errors that a user can act on."""
  import requests
  from tensorflow_datasets.core.download import download_manager

  try:
    with files.writing(root, intact='what was there before'):
      yield
  except (DataError, files.WriteError):
    raise
  except download_manager.NonMatchingChecksumError as error:
    raise ValueError(f'{name}: {error}') from error
  except requests.RequestException as error:
    raise DataNotFoundError(
      f'{name}: the download broke off '
      f'({type(error).__name__}: {error}); run the command again'
    ) from error
  except Exception as error:
    raise DataError(
      f'{root}: {name} cannot be prepared there ({reason(error)})'
    ) from error
