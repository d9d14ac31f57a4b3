"""Results as JSON, in one form, and as Markdown tables.

A run, a benchmark, an experiment or the campaign of interruptions writes a
document. It is an object with `schema_version`, `kind`, `command` (which
reproduces it, or null), `machine` (`provenance.machine()`), and the
measurements.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tabulate

from dhat_jax.runtime import files, provenance

SCHEMA_VERSION = 2
KINDS = ('run', 'benchmark', 'experiment', 'survival')

# Documents of version 1 have neither version nor kind: the first of these whose
# keys are all there is theirs.
_KINDS_OF_VERSION_1 = (
  ('benchmark', ('what',)),
  ('benchmark', ('temporaries',)),
  ('experiment', ('experiment',)),
  ('experiment', ('records', 'table')),
  ('survival', ('totals', 'table')),
  ('run', ('results',)),
  ('run', ('accuracy',)),
)


def document(
  kind: str,
  body: Mapping[str, Any],
  *,
  command: str | None = None,
  machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns a document.

  Args:
    kind: one of `KINDS`.
    body: the measurements; their keys are beside the document's.
    command: the command that reproduces it, as a reader would type it.
    machine: the machine of the measurements; default: this process's.

  Raises:
    ValueError: an unknown kind, or one of the document's keys in the body.
  """
  header = {
    'schema_version': SCHEMA_VERSION,
    'kind': _check_kind('document', kind),
    'command': command,
    'machine': provenance.machine() if machine is None else machine,
  }
  both = sorted(header.keys() & body.keys())
  if both:
    raise ValueError(f'document: got {both} twice, in its body as well')
  return {**header, **body}


def write(path: str, content: Mapping[str, Any]) -> None:
  """Writes a document atomically.

  Raises:
    ValueError: it does not have this version's form.
    files.WriteError: the disk refuses it.
  """
  version = content.get('schema_version')
  if version != SCHEMA_VERSION:
    raise ValueError(
      f'{path}: got schema_version {version}, expected {SCHEMA_VERSION}'
    )
  _check_kind(path, content.get('kind'))
  files.write_json(path, content)


def read(path: str) -> dict[str, Any]:
  """Reads a document of this version or an older one.

  Returns:
    The document. One of version 1 gets a `schema_version` and a `kind`, and is
    unchanged otherwise.

  Raises:
    ValueError: not a document, or one of a newer version than this code.
  """
  content = files.read_json(path)
  if not isinstance(content, dict):
    raise ValueError(
      f'{path}: got {type(content).__name__}, expected a JSON object'
    )
  version = content.get('schema_version')
  if version is None:
    kind = _kind_of_version_1(path, content)
    return {'schema_version': 1, 'kind': kind, **content}
  if version not in range(1, SCHEMA_VERSION + 1):
    raise ValueError(
      f'{path}: got schema_version {version!r}, expected at most '
      f'{SCHEMA_VERSION}; a newer dhat_jax wrote it'
    )
  _check_kind(path, content.get('kind'))
  return content


def markdown_table(
  headers: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1
) -> str:
  """Returns a Markdown table.

  Args:
    headers: the columns' titles.
    rows: of cells, as text.
    left: how many columns are aligned to the left; the others to the right.
  """
  return tabulate.tabulate(
    rows,
    headers=headers,
    tablefmt='pipe',
    colalign=['left'] * left + ['right'] * (len(headers) - left),
    disable_numparse=True,
  )


def _kind_of_version_1(path: str, content: Mapping[str, Any]) -> str:
  for kind, keys in _KINDS_OF_VERSION_1:
    if all(key in content for key in keys):
      return kind
  raise ValueError(
    f'{path}: got the keys {list(content)[:5]}, expected those of a document: '
    f'{", ".join(KINDS)}'
  )


def _check_kind(where: str, kind: Any) -> str:
  if kind not in KINDS:
    raise ValueError(f'{where}: got kind {kind!r}, choices are {KINDS}')
  return kind
