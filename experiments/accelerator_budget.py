"""A list of measurements that fits a time, and resumes.

Each item's row is in the JSON as soon as it is measured. What is there is not
measured again, what failed is tried once more, after all others.
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


class Slice:
  """Some minutes of a machine, spent on items in the order of their value."""

  def __init__(
    self,
    what: str,
    path: str,
    *,
    seconds: float,
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
      command: how to get the same.
      table: rows -> lines of Markdown, which the JSON has too.
      report: called with a line for each item.
      clock: in seconds.

    Raises:
      ValueError: a JSON of something else.
    """
    self._what, self._path, self._command = what, path, command
    self._clock, self._report, self._table = clock, report, table
    self._started = clock()
    self._seconds = seconds
    self._lock = threading.Lock()
    self.rows: dict[str, dict[str, Any]] = {}
    self.not_started: list[str] = []
    if os.path.exists(path):
      document = documents.read(path)
      if document.get('what') != self.title:
        raise ValueError(
          f'--out: {path} holds {document.get("what")!r}, expected '
          f'{self.title!r}'
        )
      self.rows = {row['item']: row for row in document['rows']}

  @property
  def title(self) -> str:
    """What the JSON calls itself."""
    return f'accelerator {self._what}'

  @property
  def failed(self) -> list[str]:
    """The items that ended with an error."""
    return [name for name, row in self.rows.items() if 'error' in row]

  def left(self) -> float:
    """Returns the seconds that are left."""
    return self._started + self._seconds - self._clock()

  def spend(self, items: Sequence[Item], *, workers: int = 1) -> None:
    """Measures what is missing, as far as the time reaches.

    Args:
      items: in the order of their value.
      workers: threads that measure at the same time: where times do not matter.
    """
    missing = [item for item in items if item.name not in self.rows]
    again = [item for item in items if item.name in self.failed]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      list(pool.map(self._try, [*missing, *again]))

  def _factor(self) -> float:
    """Returns what items took here, as a multiple of what was expected."""
    done = [row for row in self.rows.values() if 'error' not in row]
    expected = sum(row['estimate_seconds'] for row in done)
    taken = sum(row['seconds'] for row in done)
    return taken / expected if expected else 1.0

  def _try(self, item: Item) -> None:
    needed = MARGIN * item.estimate_seconds * self._factor()
    if needed > self.left():
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
    body = {'what': self.title, 'table': self.table(), 'rows': self._rows()}
    documents.write(
      self._path,
      documents.document('experiment', body, command=self._command),
    )

  def _rows(self) -> list[dict[str, Any]]:
    return list(self.rows.values())

  def table(self) -> list[str]:
    """Returns the lines of what was measured so far, and of what failed."""
    whole = [row for row in self._rows() if 'error' not in row]
    failed = [f'{name}: {self.rows[name]["error"]}' for name in self.failed]
    described = provenance.describe(
      provenance.machine(), packages=('jax', 'torch', 'pyautoattack')
    )
    caption = '; '.join([f'Measured on {described}', *failed])
    return [*self._table(whole), '', f'{caption}.']
