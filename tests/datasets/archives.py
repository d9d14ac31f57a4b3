"""Tiny archives in the formats of the originals."""

import io
import os
import pathlib
import struct
import tarfile

import numpy as np
from scipy import io as scipy_io

from dhat_jax.datasets.tfds import builders

CIFAR = {
  'cifar10': (
    'cifar-10-binary.tar.gz',
    'cifar-10-batches-bin/',
    {'batches.meta.txt': 10},
    [f'data_batch_{index}.bin' for index in range(1, 6)],
    ['test_batch.bin'],
  ),
  'cifar100': (
    'cifar-100-binary.tar.gz',
    'cifar-100-binary/',
    {'coarse_label_names.txt': 20, 'fine_label_names.txt': 100},
    ['train.bin'],
    ['test.bin'],
  ),
}


def write_cifar(name, folder, rows_per_file=3, labels_of=None):
  """Writes a CIFAR archive; returns {split: (images, labels)} in file order."""
  filename, prefix, meta, train_files, test_files = CIFAR[name]
  generator = np.random.default_rng(0)
  content = {'train': ([], []), 'test': ([], [])}
  path = os.path.join(folder, filename)
  with tarfile.open(path, 'w:gz') as archive:

    def add(file, data):
      info = tarfile.TarInfo(prefix + file)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))

    for file in [*train_files, *test_files]:
      split = 'test' if file in test_files else 'train'
      images = generator.integers(0, 256, (rows_per_file, 32, 32, 3), np.uint8)
      labels = np.stack(
        [generator.integers(0, count, rows_per_file) for count in meta.values()]
      )
      if labels_of is not None:
        labels[:] = labels_of
      planes = images.transpose(0, 3, 1, 2).reshape(rows_per_file, -1)
      add(file, np.hstack([labels.T, planes]).astype(np.uint8).tobytes())
      content[split][0].append(images)
      content[split][1].append(labels[-1])
    for file, count in meta.items():
      # The originals end in an empty line.
      names = ''.join(f'{file[0]}_name{index}\n' for index in range(count))
      add(file, f'{names}\n'.encode())
  return {
    split: (np.concatenate(images), np.concatenate(labels))
    for split, (images, labels) in content.items()
  }


def write_svhn(folder, num_images=4, labels=None):
  """Writes train_32x32.mat and test_32x32.mat; returns what is in them."""
  generator = np.random.default_rng(1)
  content = {}
  for split in ('train', 'test'):
    images = generator.integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    stored = generator.integers(1, 11, num_images) if labels is None else labels
    stored = np.asarray(stored, np.uint8)
    scipy_io.savemat(
      os.path.join(folder, f'{split}_32x32.mat'),
      {'X': images.transpose(1, 2, 3, 0), 'y': stored[:, None]},
    )
    content[split] = (images, stored % 10)
  return content


def register(monkeypatch, name, manual_dir):
  """Makes the checksums of synthetic archives the registered ones."""
  from tensorflow_datasets.core.download import checksums

  builder_class = builders.builder_class(name)
  infos = dict(builder_class.url_infos)
  for url, info in infos.items():
    path = pathlib.Path(manual_dir, info.filename)
    if path.exists():
      infos[url] = checksums.compute_url_info(path)
  monkeypatch.setattr(builder_class, 'url_infos', infos)


def by_image(images, labels):
  """Returns {pixels: label}: the content without its order."""
  pairs = zip(images, labels, strict=True)
  return {image.tobytes(): int(label) for image, label in pairs}


def to_tfrecord(folder, target):
  """Copies a prepared ArrayRecord folder as TFRecord, TFDS's default format.

  Record by record, as TFDS stores the same bytes in both; checksums are zero.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  os.makedirs(target)
  for name in os.listdir(folder):
    source = os.path.join(folder, name)
    if '.array_record' in name:
      reader = ArrayRecordReader(source)
      new = os.path.join(target, name.replace('.array_record', '.tfrecord'))
      with open(new, 'wb') as file:
        for record in reader.read_all():
          file.write(struct.pack('<QI', len(record), 0) + record + bytes(4))
      reader.close()
    else:
      with open(source) as file:
        text = file.read()
      with open(os.path.join(target, name), 'w') as file:
        file.write(text.replace('array_record', 'tfrecord'))
