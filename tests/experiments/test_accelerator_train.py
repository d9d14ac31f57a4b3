"""Training on an accelerator, rehearsed on the CPU with tiny sizes."""

import functools
import itertools
import signal
import time

import numpy as np
import pytest

from dhat_jax.runtime import documents
from experiments import accelerator, accelerator_train

TINY = 'tests/helpers/tiny_run.py'


def write_images(folder):
  rng = np.random.default_rng(0)
  folder.mkdir()
  arrays = {}
  for split, count in (('train', 60), ('test', 40)):
    arrays[f'x_{split}'] = rng.integers(
      256, size=(count, 8, 8, 1), dtype=np.uint8
    )
    arrays[f'y_{split}'] = np.arange(count) % 10
  np.savez(folder / 'cifar10.npz', **arrays)
  return folder


@pytest.mark.slow
def test_train(tmp_path):
  write_images(tmp_path / 'data')
  arguments = (
    *(f'--config={TINY}', '--epochs=100', '--batch_size=10'),
    *('--train_images=50', '--test_images=20', '--autoattack_images=8'),
    *('--pgd_steps=2', '--n_iter=2', '--n_queries=4'),
  )
  assert train(tmp_path, *arguments) == 0
  path = str(tmp_path / 'work' / 'accelerator_train.json')
  document = documents.read(path)
  assert document['kind'] == 'experiment'
  assert document['missing'] == 0
  assert document['data'] == 'CIFAR-10, 50 images'
  assert [row['variant'] for row in document['rows']] == [
    *('single head', 'DH-AT, pairwise', 'DH-AT, mean')
  ]
  for row in document['rows']:
    assert row['n_test'] == 20
    clean, pgd, autoattack = row['accuracy']
    assert (clean, pgd) == ('clean', 'pgd_2')
    assert 'images=8' in autoattack
  results = tmp_path / 'work' / 'dual' / 'results.json'
  before = results.stat().st_mtime_ns
  assert train(tmp_path, *arguments) == 0
  assert documents.read(path)['rows'] == document['rows']
  assert results.stat().st_mtime_ns == before


def test_the_same_images_are_chosen(tmp_path):
  data = str(write_images(tmp_path / 'data'))
  paths = [str(tmp_path / name) for name in ('a.npz', 'b.npz')]
  for path in paths:
    count = accelerator_train.write_images(
      data, path, train_images=20, test_images=0
    )
    assert count == 20
  with np.load(paths[0]) as first, np.load(paths[1]) as second:
    assert len(first['y_test']) == 40
    assert len(set(first['y_train'])) > 5
    for name in first:
      np.testing.assert_array_equal(first[name], second[name])


def test_other_images_in_the_same_workdir_are_refused(tmp_path):
  data = write_images(tmp_path / 'data')
  path = str(tmp_path / 'images.npz')
  write = functools.partial(accelerator_train.write_images, path=path)
  counts = {'train_images': 20, 'test_images': 10}
  assert write(str(data), **counts) == 20
  assert write(str(data), **counts) == 20
  with pytest.raises(ValueError, match='train_images 20, this command has 30'):
    write(str(data), **{**counts, 'train_images': 30})
  with pytest.raises(ValueError, match='--workdir: its images have source'):
    write(str(write_images(tmp_path / 'other')), **counts)
  with open(data / 'cifar10.npz', 'ab') as file:
    file.write(b'more')
  with pytest.raises(ValueError, match='--workdir: its images have bytes'):
    write(str(data), **counts)


def train(tmp_path, *arguments):
  return accelerator.main(
    [
      *(
        'train',
        f'--data_dir={tmp_path / "data"}',
        f'--workdir={tmp_path / "work"}',
      ),
      *arguments,
    ]
  )


def test_train_spares_another_json(tmp_path):
  path = 'docs/results/accelerator_speed.json'
  message = "--out: .* holds 'accelerator speed' of kind 'experiment', expected"
  with pytest.raises(ValueError, match=message):
    train(tmp_path, f'--out={path}')
  with pytest.raises(ValueError, match="holds None of kind 'run', expected"):
    train(tmp_path, '--out=docs/results/digits.json')
  accelerator_train.check_out('docs/results/accelerator_train.json')
  assert not (tmp_path / 'work').exists()


def test_train_says_that_no_time_is_left(tmp_path, capsys):
  assert train(tmp_path, '--seconds=10') == 1
  assert 'not started: --seconds=10 leave no time' in capsys.readouterr().out


def test_a_run_is_asked_to_stop_in_time():
  asked = []
  before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
  try:
    with accelerator_train.stopped_after(60):
      pass
    with accelerator_train.stopped_after(0.01):
      for _ in itertools.takewhile(lambda _: not asked, range(100)):
        time.sleep(0.05)
    assert asked == [1]
  finally:
    signal.signal(signal.SIGTERM, before)
