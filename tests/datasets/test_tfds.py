import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import requests
from PIL import Image

from dhat_jax.datasets.base import validate
from dhat_jax.datasets.tfds import archives as tfds_archives
from dhat_jax.datasets.tfds import builders, load, prepared
from experiments import cifar10 as experiment
from tests.datasets import archives

tensorflow_datasets = pytest.importorskip('tensorflow_datasets')
checksums = pytest.importorskip('tensorflow_datasets.core.download.checksums')


has_tensorflow = prepared.has_tensorflow()


def assert_same(first, second):
  for split in ('train', 'test'):
    one, other = getattr(first, split), getattr(second, split)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
  assert first.class_names == second.class_names


def assert_holds(dataset, content):
  """Every image once, with its label, in whatever order."""
  validate(dataset)
  for split, expected in content.items():
    got = getattr(dataset, split)
    assert archives.by_image(got.images, got.labels) == archives.by_image(
      *expected
    )


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_from_archive(name, manual_dir, monkeypatch, no_network):
  content = archives.write_cifar(name, manual_dir)
  archives.register(monkeypatch, name, manual_dir)
  dataset = load.load(name, manual_dir=manual_dir)
  assert_holds(dataset, content)
  assert len(dataset.train.labels) == (15 if name == 'cifar10' else 3)
  assert (
    dataset.class_names[1] == {'cifar10': 'b', 'cifar100': 'f'}[name] + '_name1'
  )
  assert len(dataset.class_names) == int(name.removeprefix('cifar'))
  assert dataset.source.startswith(f'tfds {name}:3.0.2 from ')


def test_svhn_from_archive(manual_dir, monkeypatch, no_network):
  content = archives.write_svhn(manual_dir)
  assert 0 in archives.write_svhn(manual_dir, labels=[10, 1, 2, 9])['test'][1]
  content = archives.write_svhn(manual_dir, labels=[10, 1, 2, 9])
  archives.register(monkeypatch, 'svhn_cropped', manual_dir)
  dataset = load.load('svhn_cropped', manual_dir=manual_dir)
  assert_holds(dataset, content)
  assert dataset.class_names == tuple('0123456789')


def test_every_way_gives_the_same(tmp_path, manual_dir, cifar10, monkeypatch):
  first = load.load('cifar10', manual_dir=manual_dir)
  version_dir = tmp_path / 'tfds' / 'cifar10' / '3.0.2'
  assert version_dir.is_dir()
  shutil.rmtree(manual_dir)

  # The official entry point reads what was prepared.
  source = tensorflow_datasets.data_source(
    'cifar10', split='train', data_dir=tmp_path / 'tfds', download=False
  )
  for index, example in enumerate(source):
    np.testing.assert_array_equal(example['image'], first.train.images[index])
    assert example['label'] == first.train.labels[index]
    assert example['id'].startswith(b'train_000')

  # ArrayRecord, by the folder of data sets, of the data set, of the version.
  for folder in (tmp_path / 'tfds', version_dir.parent, version_dir):
    assert prepared.find('cifar10', str(folder)) == str(version_dir)
  assert_same(first, load.load('cifar10', data_dir=str(version_dir)))
  # TFRecord.
  other = tmp_path / 'other'
  archives.to_tfrecord(version_dir, other / 'cifar10' / '3.0.2')
  assert_same(first, load.load('cifar10', data_dir=str(other)))
  # The cache alone, and then nothing of TFDS is needed.
  shutil.rmtree(tmp_path / 'tfds')
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  assert_same(first, load.load('cifar10'))


def test_npz_and_image_folder_give_the_same_images(
  tmp_path, manual_dir, monkeypatch
):
  """As the experiment on CIFAR-10 reads them, in the order of their hashes."""
  content = archives.write_cifar('cifar10', manual_dir, 10, np.arange(10))
  archives.register(monkeypatch, 'cifar10', manual_dir)
  load.load('cifar10', manual_dir=manual_dir)
  folder, arrays = tmp_path / 'images', {}
  for split, (images, labels) in content.items():
    arrays |= {f'x_{split}': images, f'y_{split}': labels}
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      path = folder / split / str(label) / f'{index}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
  (tmp_path / 'npz').mkdir()
  np.savez(tmp_path / 'npz' / 'cifar10.npz', **arrays)
  digests = [
    [experiment.ordered(part).digest() for part in (data.train, data.test)]
    for data in (
      experiment.load(str(tmp_path / name))
      for name in ('tfds', 'npz', 'images')
    )
  ]
  assert digests[0] == digests[1] == digests[2]


def test_prepared_folder_that_changes_is_read_anew(
  tmp_path, manual_dir, cifar10
):
  root = str(tmp_path / 'mine')
  first = load.load('cifar10', data_dir=root, manual_dir=manual_dir)
  assert len(os.listdir(tmp_path / 'cache')) == 1
  load.load('cifar10', data_dir=root)
  assert len(os.listdir(tmp_path / 'cache')) == 1
  record = next((tmp_path / 'mine/cifar10/3.0.2').glob('*train*'))
  record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
  with pytest.raises(ValueError, match=r'mine/cifar10/3.0.2'):
    load.load('cifar10', data_dir=root)
  assert len(first.train.labels) == 15


def test_download_that_tfds_has_made_is_used(
  tmp_path, manual_dir, cifar10, no_network
):
  """TFDS's own downloads folder, with its INFO file next to the archive."""
  from tensorflow_datasets.core.download import resource

  builder_class = builders.builder_class('cifar10')
  ((url, info),) = [
    item for item in builder_class.url_infos.items() if 'cifar-10' in item[0]
  ]
  target = tmp_path / 'tfds' / 'downloads' / 'cifar10'
  target.mkdir(parents=True)
  path = target / resource.get_dl_fname(url, info.checksum)
  shutil.move(pathlib.Path(manual_dir, info.filename), path)
  resource.write_info_file(
    url=url,
    path=path,
    dataset_name='cifar10',
    original_fname=info.filename,
    url_info=info,
  )
  assert_holds(load.load('cifar10'), cifar10)


def test_wrong_checksum_names_file_and_both(tmp_path, manual_dir):
  archives.write_cifar('cifar10', manual_dir)
  with pytest.raises(ValueError, match='wrong checksum') as error:
    load.load('cifar10', manual_dir=manual_dir)
  path = os.path.join(manual_dir, 'cifar-10-binary.tar.gz')
  got = checksums.compute_url_info(pathlib.Path(path)).checksum
  expected = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
  for text in (path, expected, got):
    assert text in str(error.value)
  assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'svhn_cropped'])
def test_no_network_and_no_data(tmp_path, name, no_network):
  start = time.monotonic()
  with pytest.raises(FileNotFoundError) as error:
    load.load(name)
  assert time.monotonic() - start < 10
  message = str(error.value)
  archive = {'svhn_cropped': 'train_32x32.mat'}.get(
    name, f'cifar-{name[5:]}-binary.tar.gz'
  )
  (url,) = [
    url
    for url in builders.builder_class(name).url_infos
    if url.endswith(f'/{archive}')
  ]
  for text in (
    archive,
    url,
    '--config.dataset.manual_dir=',
    '--config.dataset.data_dir=',
    'no network in this test',
    str(tmp_path / 'tfds' / name),
  ):
    assert text in message
  # Nothing is left that a second try could stumble over.
  assert not [p for p in (tmp_path / 'tfds').rglob('*') if p.is_file()]
  assert not list((tmp_path / 'tfds').rglob('*.tmp.*'))


def test_downloads_turned_off(manual_dir):
  with pytest.raises(FileNotFoundError, match='turned off'):
    load.load('cifar10', manual_dir=manual_dir, download=False)


def test_second_archive_missing(manual_dir, monkeypatch, no_network):
  archives.write_svhn(manual_dir)
  archives.register(monkeypatch, 'svhn_cropped', manual_dir)
  os.remove(os.path.join(manual_dir, 'test_32x32.mat'))
  with pytest.raises(FileNotFoundError, match=r'test_32x32\.mat') as error:
    load.load('svhn_cropped', manual_dir=manual_dir)
  assert 'train_32x32.mat' not in str(error.value)


def test_broken_download_leaves_nothing(
  tmp_path, manual_dir, cifar10, monkeypatch
):
  """The connection breaks off; the next try, from an archive, works."""
  from tensorflow_datasets.core.download import downloader

  def break_off(self, url, destination_path, verify=True):
    (destination_path / 'part').write_bytes(b'half of it')
    raise requests.ConnectionError('broke off')

  monkeypatch.setattr(tfds_archives, '_unreachable', lambda url: None)
  monkeypatch.setattr(downloader._Downloader, '_sync_download', break_off)
  with pytest.raises(FileNotFoundError, match='broke off'):
    load.load('cifar10')
  assert not list((tmp_path / 'tfds').rglob('*.tmp.*'))
  assert not list((tmp_path / 'tfds').rglob('part'))
  assert_holds(load.load('cifar10', manual_dir=manual_dir), cifar10)


def test_label_out_of_range(manual_dir, monkeypatch):
  archives.write_cifar('cifar10', manual_dir, labels_of=10)
  archives.register(monkeypatch, 'cifar10', manual_dir)
  with pytest.raises(
    ValueError, match=r'cifar-10-binary\.tar\.gz: label 10, expected in \[0, 10'
  ):
    load.load('cifar10', manual_dir=manual_dir)


def test_svhn_label_out_of_range(manual_dir, monkeypatch):
  archives.write_svhn(manual_dir, labels=[1, 2, 3, 11])
  archives.register(monkeypatch, 'svhn_cropped', manual_dir)
  with pytest.raises(ValueError, match=r'_32x32\.mat: labels from 1 to 11'):
    load.load('svhn_cropped', manual_dir=manual_dir)


@pytest.mark.parametrize('empty', [False, True])
def test_archive_that_is_none(manual_dir, monkeypatch, empty):
  path = pathlib.Path(manual_dir, 'cifar-10-binary.tar.gz')
  path.write_bytes(b'' if empty else b'<html>not found</html>')
  archives.register(monkeypatch, 'cifar10', manual_dir)
  with pytest.raises(ValueError, match=r'cifar-10-binary\.tar\.gz'):
    load.load('cifar10', manual_dir=manual_dir)


def test_truncated_rows():
  with pytest.raises(ValueError, match='got 3072 bytes, expected rows of 3073'):
    list(builders._cifar_rows(bytes(3072), 1, 'some file'))


@pytest.mark.parametrize('keep', [5, 12, 14, 20])
def test_truncated_tfrecord(tmp_path, keep):
  path = tmp_path / 'x.tfrecord'
  path.write_bytes(b'\3' + bytes(11) + b'abc' + bytes(4))
  assert list(prepared.tfrecords(str(path))) == [b'abc']
  path.write_bytes((path.read_bytes() * 2)[: 19 + keep % 19])
  with pytest.raises(ValueError, match=r'x\.tfrecord: is damaged or truncated'):
    list(prepared.tfrecords(str(path)))


def test_damaged_tfrecord_names_file(tmp_path, manual_dir, cifar10):
  load.load('cifar10', manual_dir=manual_dir)
  version_dir = tmp_path / 'tfds' / 'cifar10' / '3.0.2'
  target = tmp_path / 'other' / 'cifar10' / '3.0.2'
  archives.to_tfrecord(version_dir, target)
  (path,) = target.glob('*-test.tfrecord*')
  whole = path.read_bytes()
  middle = len(whole) // 2
  path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
  with pytest.raises(ValueError, match=f'{path.name}, record 1: is not a'):
    load.load('cifar10', data_dir=str(tmp_path / 'other'))
  path.write_bytes(b'')
  with pytest.raises(ValueError, match='test split: holds 0 examples, expec'):
    load.load('cifar10', data_dir=str(tmp_path / 'other'))


def test_other_data_set_in_folder(tmp_path, manual_dir, cifar10):
  load.load('cifar10', manual_dir=manual_dir)
  folder = str(tmp_path / 'tfds' / 'cifar10')
  with pytest.raises(ValueError, match="holds 'cifar10', expected 'cifar100'"):
    load.load('cifar100', data_dir=folder)


def test_format_that_needs_tensorflow(tmp_path, manual_dir, cifar10):
  load.load('cifar10', manual_dir=manual_dir)
  info = tmp_path / 'tfds' / 'cifar10' / '3.0.2' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'riegeli'))
  with pytest.raises(ValueError, match=r"'riegeli'; choices without TensorF"):
    load.load('cifar10', data_dir=str(tmp_path / 'tfds'))


def test_names():
  with pytest.raises(ValueError, match=r"no 'cifar'; choices are \('cifar10'"):
    load.load('cifar')
  with pytest.raises(ValueError, match=r"'mnist' is not prepared in .*only"):
    load.load('mnist')


def test_manual_dir_that_is_none():
  with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
    load.load('cifar10', manual_dir='/nowhere')


def test_import_loads_no_tfds():
  code = (
    'import sys, dhat_jax.datasets.tfds.load, dhat_jax.datasets.digits; '
    "sys.exit(any(m in sys.modules for m in ('tensorflow_datasets', "
    "'sklearn', 'tensorflow')))"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


_OFFICIAL = """
import pathlib, sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
manual_dir, root, file_format = sys.argv[1:]
cls = load.builder_cls('cifar10')
infos = dict(cls.url_infos)
for url, info in infos.items():
  path = pathlib.Path(manual_dir, info.filename)
  if path.exists():
    infos[url] = checksums.compute_url_info(path)
cls.url_infos = infos
cls(data_dir=root, file_format=file_format).download_and_prepare(
  download_config=load.download.DownloadConfig(manual_dir=manual_dir)
)
"""


@pytest.mark.slow
@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_official_preparation_gives_the_same(
  tmp_path, manual_dir, cifar10, file_format
):
  """What TensorFlow prepares from the same archive, in the same order."""
  if not has_tensorflow:
    pytest.skip("needs TensorFlow: pip install 'dhat_jax[tf]'")
  official = str(tmp_path / 'official')
  subprocess.run(
    [sys.executable, '-c', _OFFICIAL, manual_dir, official, file_format],
    check=True,
  )
  assert_same(
    load.load('cifar10', manual_dir=manual_dir),
    load.load('cifar10', data_dir=official),
  )
