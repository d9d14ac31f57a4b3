import errno
import glob
import json
import os

import numpy as np
import pytest

from dhat_jax.runtime import files
from dhat_jax.training import metrics


def test_means_divide_sums_by_counts_once():
  # A last batch of 2 among batches of 8: not the mean of the means.
  records = [
    (1, {'loss': (np.float32(8.0), 8.0), 'grad_norm': (3.0, 1.0)}),
    (2, {'loss': (np.float32(16.0), 8.0), 'grad_norm': (4.0, 1.0)}),
    (3, {'loss': (np.float32(12.0), 2.0), 'grad_norm': (8.0, 1.0)}),
  ]
  got = metrics.means(records)
  assert got == {'loss': 2.0, 'grad_norm': 5.0}
  assert all(type(value) is float for value in got.values())
  assert metrics.means([]) == {}


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_first_bad_step(bad):
  good = {'loss': (1.0, 1.0), 'grad_norm': (2.0, 1.0)}
  worse = {'loss': (np.float32(bad), 1.0), 'grad_norm': (bad, 1.0)}
  records = [
    (11, good),
    (12, {**good, 'loss': (np.float32(bad), 1.0)}),
    (13, worse),
  ]
  metrics.check_finite(records[:1], '')
  with pytest.raises(metrics.NonFiniteError) as error:
    metrics.check_finite(records, 'of stage main_head; last good: 10')
  assert str(error.value) == (
    'loss not finite at step 12 of stage main_head; last good: 10'
  )
  with pytest.raises(metrics.NonFiniteError, match='grad_norm, loss not'):
    metrics.check_finite(records[2:], '')


def lines(folder):
  return files.read_json_lines(os.path.join(folder, 'metrics.jsonl'))


def write(folder, stage, start_step, steps):
  with metrics.Writer(str(folder), stage, start_step) as writer:
    for step in steps:
      writer.write(step, {'loss': step / 2})


def test_writer_writes_json_lines_and_tensorboard(tmp_path):
  write(tmp_path, 'main_head', 0, (1, 2))
  assert lines(tmp_path) == [
    {'stage': 'main_head', 'step': 1, 'loss': 0.5},
    {'stage': 'main_head', 'step': 2, 'loss': 1.0},
  ]
  events = glob.glob(str(tmp_path / 'tensorboard' / 'main_head' / 'events*'))
  assert len(events) == 1
  with open(events[0], 'rb') as file:
    assert b'loss' in file.read()


def test_writer_drops_records_after_the_start_step(tmp_path):
  write(tmp_path, 'main_head', 0, (2, 4, 6))
  write(tmp_path, 'second_head', 0, (2, 4, 6, 8))
  # Resumed at step 4, stage 2 writes 6 again; stage 1 is not touched.
  write(tmp_path, 'second_head', 4, (6,))
  got = [(r['stage'], r['step']) for r in lines(tmp_path)]
  assert got == [
    *(('main_head', step) for step in (2, 4, 6)),
    *(('second_head', step) for step in (2, 4, 6)),
  ]
  # Begun again, it has nothing left.
  write(tmp_path, 'second_head', 0, ())
  assert {r['stage'] for r in lines(tmp_path)} == {'main_head'}


def test_last_line_cut_off_by_a_kill(tmp_path):
  write(tmp_path, 'main_head', 0, (1, 2))
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_text()
  for cut in (5, 20):
    path.write_text(whole[:-cut])
    assert [r['step'] for r in lines(tmp_path)] == [1]
  # A resumed stage writes after the last whole line, not into the cut one.
  write(tmp_path, 'main_head', 1, (2,))
  assert path.read_text() == whole
  assert all(json.loads(line) for line in path.read_text().splitlines())


def test_lines_that_are_no_records_are_dropped(tmp_path):
  write(tmp_path, 'main_head', 0, (1, 2))
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_text()
  path.write_text('5\n{"step": 1}\n' + whole)
  write(tmp_path, 'main_head', 2, ())
  assert path.read_text() == whole


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
  with metrics.Writer(str(tmp_path), 'main_head', 0) as writer:
    writer.write(1, {'loss': 0.5})
    assert [r['step'] for r in lines(tmp_path)] == [1]


def test_null_writer_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with metrics.NullWriter() as writer:
    writer.write(1, {'loss': 0.5})
  assert os.listdir(tmp_path) == []


def test_pictures_are_rows_in_tensorboard(tmp_path, monkeypatch):
  shown = {}

  def image(name, picture, dataformats):
    shown[name] = picture, dataformats
    return metrics.summary.scalar(name, 0.0)

  monkeypatch.setattr(metrics.summary, 'image', image)
  gray = np.array([0.0, 0.5, 1.0, 2.0]).reshape(2, 2, 1, 1)
  colour = np.zeros((2, 2, 1, 3))
  with metrics.Writer(str(tmp_path), 'main_head', 0) as writer:
    writer.write_pictures(7, {'gray': gray, 'colour': colour})
  picture, dataformats = shown['gray']
  assert dataformats == 'HWC'
  assert picture.dtype == np.uint8
  # Two images side by side: [H, 2 W, 3].
  np.testing.assert_array_equal(picture[..., 0], [[0, 255], [128, 255]])
  assert picture.shape == shown['colour'][0].shape == (2, 2, 3)


def test_events_are_in_tensorboards_format(tmp_path):
  """Each record: length, its checksum, an Event, its checksum."""
  with metrics.Writer(str(tmp_path), 'main_head', 2) as writer:
    writer.write(3, {'train/loss': 0.5})
    writer.write_pictures(3, {'four channels': np.zeros((2, 2, 1, 4))})
  (path,) = (tmp_path / 'tensorboard' / 'main_head').iterdir()
  data, events = path.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], 'little')
    events.append(metrics.event_pb2.Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  assert events[0].file_version == 'brain.Event:2'
  assert [event.step for event in events[1:]] == [3, 3, 3]
  start = metrics.event_pb2.SessionLog.START
  assert events[1].session_log.status == start  # TensorBoard drops what is old
  assert events[2].summary.value[0].tag == 'train/loss'
  assert events[2].summary.value[0].simple_value == 0.5
  assert events[3].summary.value[0].image.width == 2


def test_a_full_disk_is_told_and_not_waited_for(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def write_all():
    with metrics.Writer(str(tmp_path), 'main_head', 0) as writer:
      writer.write(1, {'loss': 1.0})
      monkeypatch.setattr(
        metrics.event_file_writer.EventsWriter, 'flush', refuse
      )
      for step in range(2, 40):  # a queue would be full by now
        writer.write(step, {'loss': 1.0})

  with pytest.raises(files.WriteError) as error:
    write_all()
  assert str(error.value).startswith(
    f'{tmp_path}/metrics.jsonl: not written: no space left on device'
  )
  assert [record['step'] for record in lines(tmp_path)] == [1, 2]
