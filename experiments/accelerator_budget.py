"""A list of measurements that fits a time, and resumes.

Each item's row is in the JSON as soon as it is measured. What is there is not
measured again, if device, versions, code and config are the same. What failed
or differs is tried once more, after all others.
"""

import concurrent.futures
import dataclasses
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dhat_jax.runtime import documents, provenance

DONE, WRONG, LEFT = 0, 1, 3  # exit codes
# Times scatter: an item starts if there is this much more than it may take.
MARGIN = 1.2


@dataclasses.dataclass(frozen=True)
class Item:
  """One measurement.

  Attributes:
    name: its key in the JSON.
    estimate_seconds: what it may take; corrected by what others took.
    measure: returns the row, as JSON can hold it.
  """

  name: str
  estimate_seconds: float
  measure: Callable[[], Mapping[str, Any]]


def wrong(row: Mapping[str, Any]) -> bool:
  """Returns whether a row is an error, or differs from what is right."""
  return bool('error' in row or row.get('errors') or row.get('agrees') is False)


def _read(path: str, title: str, identity: Mapping[str, Any]) -> dict[str, Any]:
  """Reads a slice's JSON.

  Raises:
    ValueError: it holds something else, or what something else measured.
  """
  document = documents.read(path)
  if document.get('what') != title:
    raise ValueError(
      f'--out: {path} holds {document.get("what")!r}, expected {title!r}'
    )
  stored = document.get('identity')
  if not isinstance(stored, dict):
    raise ValueError(
      f'--out: {path} does not say what measured it; give another --out'
    )
  for name in sorted(stored.keys() | identity.keys()):
    got, expected = stored.get(name), identity.get(name)
    if got != expected:
      raise ValueError(
        f'--out: {path} was measured with another {name}: got {got!r}, '
        f'expected {expected!r}; give another --out'
      )
  rows = document.get('rows')
  if not isinstance(rows, list) or not all(map(_is_row, rows)):
    raise ValueError(
      f'--out: {path} is damaged: its rows are no list of measured items; '
      'give another --out'
    )
  return document


def _is_row(row: Any) -> bool:
  return (
    isinstance(row, dict)
    and isinstance(row.get('item'), str)
    and all(
      isinstance(row.get(name), int | float)
      for name in ('estimate_seconds', 'seconds')
    )
  )


class Slice:
  """Some minutes of a machine, spent on items in the order of their value."""

  def __init__(
    self,
    what: str,
    path: str,
    *,
    seconds: float,
    identity: Mapping[str, Any],
    command: str,
    table: Callable[[Sequence[Mapping[str, Any]]], list[str]],
    report: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock; reads the JSON if it is there.

    Args:
      what: name of the slice: 'speed'.
      path: of the JSON.
      seconds: after which nothing starts, and before which all has to end.
      identity: what the rows depend on, as JSON; a JSON of other rows is
        refused.
      command: how to get the same.
      table: rows -> lines of Markdown, which the JSON has too.
      report: called with a line for each item.
      clock: in seconds.

    Raises:
      ValueError: a JSON of something else, or of other code or machines.
    """
    self._what, self._path, self._command = what, path, command
    self._clock, self._report, self._table = clock, report, table
    self._started = clock()
    self._seconds = seconds
    self._lock = threading.RLock()
    self._identity = dict(identity)
    self._machine: dict[str, Any] | None = None
    self._asked: dict[str, None] = {}
    self.rows: dict[str, dict[str, Any]] = {}
    self.not_started: list[str] = []
    if os.path.exists(path):
      self._resume()

  def _resume(self) -> None:
    """Takes over what the JSON holds."""
    document = _read(self._path, self.title, self._identity)
    self._machine = document['machine']
    self.rows = {row['item']: row for row in document['rows']}
    try:
      self.table()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ValueError(
        f'--out: {self._path} is damaged ({type(error).__name__}: {error}); '
        'give another --out'
      ) from error

  @property
  def title(self) -> str:
    """What the JSON calls itself."""
    return f'accelerator {self._what}'

  @property
  def failed(self) -> list[str]:
    """The items that ended with an error."""
    return [row['item'] for row in self._rows() if 'error' in row]

  @property
  def exit_code(self) -> int:
    """1 if something failed or differs, else 3 if something is left, else 0."""
    if any(map(wrong, self._rows())):
      return WRONG
    return LEFT if self.not_started else DONE

  def left(self) -> float:
    """Returns the seconds that are left."""
    return self._started + self._seconds - self._clock()

  def spend(self, items: Sequence[Item], *, workers: int = 1) -> None:
    """Measures what is missing, as far as the time reaches.

    Args:
      items: in the order of their value.
      workers: threads that measure at the same time: where times do not matter.
    """
    rows = {row['item']: row for row in self._rows()}
    self._asked |= dict.fromkeys(item.name for item in items)
    missing = [item for item in items if item.name not in rows]
    again = [item for item in items if wrong(rows.get(item.name, {}))]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      list(pool.map(self._try, [*missing, *again]))

  def end(self) -> str:
    """Writes what is left, too; returns the line that says how much is done."""
    with self._lock:
      self._write()
    rows = {row['item']: row for row in self._rows()}
    done = [
      name for name in self._asked if name in rows and not wrong(rows[name])
    ]
    return f'{len(done)} of {len(self._asked)} measured'

  def _factor(self) -> float:
    """Returns what items took here, as a multiple of what was expected."""
    done = [row for row in self._rows() if 'error' not in row]
    expected = sum(row['estimate_seconds'] for row in done)
    taken = sum(row['seconds'] for row in done)
    return taken / expected if expected else 1.0

  def _try(self, item: Item) -> None:
    needed = MARGIN * item.estimate_seconds * self._factor()
    if needed > self.left():
      with self._lock:
        self.not_started.append(item.name)
      self._report(
        f'{item.name}: not started, {self.left():.0f} s are left and it may '
        f'take {needed:.0f} s'
      )
      return
    started = self._clock()
    try:
      result = dict(item.measure())
    except Exception as error:
      traceback.print_exc()
      result = {'error': f'{type(error).__name__}: {error}'[:500]}
    row = {
      'item': item.name,
      'estimate_seconds': item.estimate_seconds,
      'seconds': self._clock() - started,
      **result,
    }
    with self._lock:
      self.rows.pop(item.name, None)  # the last one is the newest
      self.rows[item.name] = row
      self._write()
    said = result.get('error') or result.get('line', 'done')
    self._report(f'{item.name}: {said} ({row["seconds"]:.0f} s)')

  def _write(self) -> None:
    body = {
      'what': self.title,
      'identity': self._identity,
      'table': self.table(),
      'not_started': list(self.not_started),
      'rows': self._rows(),
    }
    documents.write(
      self._path,
      documents.document(
        'experiment', body, command=self._command, machine=self._machine
      ),
    )

  def _rows(self) -> list[dict[str, Any]]:
    with self._lock:
      return list(self.rows.values())

  def table(self) -> list[str]:
    """Returns the lines of what was measured so far, and of what failed."""
    rows = self._rows()
    whole = [row for row in rows if 'error' not in row]
    failed = [f'{r["item"]}: {r["error"]}' for r in rows if 'error' in r]
    described = provenance.describe(
      self._machine or provenance.machine(),
      packages=('jax', 'torch', 'pyautoattack'),
    )
    caption = '; '.join([f'Measured on {described}', *failed])
    return [*self._table(whole), '', f'{caption}.']
