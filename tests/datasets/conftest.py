"""Folders of a test's own, and synthetic archives in them."""

import socket

import pytest
import requests

from dhat_jax.datasets.tfds import prepared
from tests.datasets import archives


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
  """No test sees the user's folders, or makes use of TensorFlow."""
  monkeypatch.setattr(prepared, 'has_tensorflow', lambda: False)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  monkeypatch.setenv('DHAT_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def no_network(monkeypatch):
  def fail(*args, **kwargs):
    raise requests.ConnectionError('no network in this test')

  monkeypatch.setattr(requests.Session, 'request', fail)
  monkeypatch.setattr(socket, 'create_connection', fail)


@pytest.fixture
def manual_dir(tmp_path):
  folder = tmp_path / 'manual'
  folder.mkdir()
  return str(folder)


@pytest.fixture
def cifar10(monkeypatch, manual_dir):
  content = archives.write_cifar('cifar10', manual_dir)
  archives.register(monkeypatch, 'cifar10', manual_dir)
  return content
