"""Computes records, or reads those that are stored."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import chex
import tqdm

from dhat_jax.datasets.base import Split
from dhat_jax.evaluation import broken
from dhat_jax.evaluation.attack_types import EvaluationAttack
from dhat_jax.evaluation.evaluator import Target
from dhat_jax.evaluation.plan import Job, Plan
from dhat_jax.evaluation.records import Record, Workspace
from dhat_jax.evaluation.store import Arrays, Store
from dhat_jax.runtime import files, memory, preemption, processes, streams
from dhat_jax.runtime.progress import progress_bar, throttled

Records = dict[tuple[str, str], Record]


class Recorder:
  """Computes the records of one split, or reads those that are stored."""

  def __init__(
    self,
    split: Split,
    store: Store,
    *,
    rng: chex.PRNGKey,
    export: Sequence[str] = (),
    show: Callable[[str], Any] | None = None,
  ):
    """Creates the recorder; nothing is attacked yet.

    Args:
      split: uint8 images; all of them count.
      store: of the finished records.
      rng: typed key of all noise.
      export: the attacks whose images are written, below the store's folder.
      show: shows a line of progress, or None.
    """
    self._split = split
    self._store = store
    self._rng = rng
    self._export = () if store.directory is None else tuple(export)
    self._show = show

  def record(self, target: Target, attack: EvaluationAttack) -> Record:
    """Returns what an `EvaluationAttack` finds on a target.

    Raises:
      ValueError: a record of the wrong number of images, or one that
        contradicts itself.
    """
    name = f'{target.name}/{attack.name}'
    path = self._images_path(target.name, attack.name)

    def make() -> Arrays:
      record = attack.run(
        target,
        self._split,
        self._rng,
        Workspace(
          keep_images=path is not None,
          make_folder=lambda: self._store.folder(name, attack.identity()),
          show=self._show and (lambda text: self._show(f'{name} {text}')),
        ),
      )
      self._write_images(path, record)
      return record.arrays()

    arrays = self._store.get(
      name,
      attack.identity(),
      make,
      again=path is not None and not os.path.exists(path),
    )
    labels = self._split.labels
    try:
      record = Record.from_arrays(arrays, labels, target.scored)
    except ValueError as error:
      raise ValueError(f'{name}.npz: {error}') from error
    expected = attack.num_images(len(labels))
    if len(record.robust) != expected:
      raise ValueError(
        f'{name}: got a record of {len(record.robust)} images, expected '
        f'{expected}'
      )
    broken.write_table(self._store.directory, name, record)
    return record

  def _images_path(self, target: str, attack: str) -> str | None:
    if attack not in self._export:
      return None
    folder = os.path.join(self._store.directory, 'images', target)
    return os.path.join(folder, f'{attack}.npz')

  def _write_images(self, path: str | None, record: Record) -> None:
    if path is None:
      return
    if record.images_adv is None:
      raise ValueError(
        f'{path}: got a record without images_adv, expected them where '
        '`keep_images` is set'
      )
    if not processes.is_first():
      return
    arrays = {
      'images_adv': record.images_adv,
      'labels': self._split.labels[: len(record.robust)],
      'robust': record.robust,
    }
    files.write_npz(path, arrays)


def record_all(
  todo: list[Job],
  split: Split,
  store: Store,
  *,
  seed: int,
  plan: Plan,
  progress: str | None,
) -> Records:
  """Runs all jobs in order, or reads their stored records.

  Args:
    todo: the jobs.
    split: uint8 images; all of them count.
    store: of the finished records.
    seed: of all noise.
    plan: which attacks' images are written, and whether.
    progress: title of a progress bar; None shows none.

  Returns:
    {(target, attack): record}.
  """
  silent = progress is None or not processes.is_first()
  with progress_bar(
    progress or '', len(todo), unit='attack', disable=silent
  ) as bar:
    recorder = Recorder(
      split,
      store,
      rng=streams.key(seed),
      export=[a.name for a in plan.attacks] if plan.export_images else (),
      show=_show(bar, silent=silent),
    )
    records = {}
    for job in todo:
      records[job.key] = recorder.record(job.target, job.attack)
      memory.return_freed()
      bar.update()
      preemption.stop_here('the evaluation')
    return records


def _show(bar: tqdm.tqdm, *, silent: bool) -> Callable[[str], None]:
  """Returns the function that long attacks call at each batch, and stop in."""
  show = None if silent else throttled(bar)

  def show_and_stop(text: str) -> None:
    preemption.stop_here('the evaluation')
    if show is not None:
      show(text)

  return show_and_stop
