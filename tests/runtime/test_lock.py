"""One owner of a workdir, whatever becomes of it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys

import pytest

from dhat_jax.runtime import lock

HOLD = """
import sys
from dhat_jax.runtime import lock
with lock.held(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
  """A process that holds the lock of `tmp_path / 'run'`."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path / 'run')],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


def test_the_folder_is_made_and_left_as_it_was(tmp_path):
  folder = tmp_path / 'runs' / 'new'
  with lock.held(str(folder)):
    assert os.listdir(folder) == [lock.NAME]
    owner = json.loads((folder / lock.NAME).read_text())
    assert owner['pid'] == os.getpid()
  assert not folder.exists()
  folder.mkdir()
  with lock.held(str(folder)):
    (folder / 'config.json').write_text('{}')
  assert os.listdir(folder) == ['config.json']


def test_a_second_owner_is_refused_and_changes_nothing(tmp_path, owner):
  folder = tmp_path / 'run'
  before = (folder / lock.NAME).read_bytes()
  held_since = json.loads(before)['since']
  with (
    pytest.raises(lock.InUseError) as error,
    lock.held(str(folder)),
  ):
    pass
  message = str(error.value)
  assert f'in use by process {owner.pid} on ' in message
  assert f'since {held_since}' in message
  assert message.count('\n') == 0
  assert (folder / lock.NAME).read_bytes() == before
  # Once the first is done it is free.
  owner.communicate('')
  with lock.held(str(folder)):
    pass


def test_a_dead_owner_is_followed_with_a_word(tmp_path, owner, caplog):
  folder = str(tmp_path / 'run')
  owner.send_signal(signal.SIGKILL)
  owner.wait()
  with caplog.at_level(logging.WARNING, 'dhat_jax'), lock.held(folder):
    pass
  assert f'taken over from process {owner.pid} on ' in caplog.text
  caplog.clear()
  with lock.held(folder):
    pass
  assert not caplog.text


@pytest.mark.parametrize('text', ['', '{"pid": 1', '[1]', '{}'])
def test_a_damaged_file_locks_nobody_out(tmp_path, text):
  (tmp_path / lock.NAME).write_text(text)
  with lock.held(str(tmp_path)):
    assert json.loads((tmp_path / lock.NAME).read_text())['pid'] == os.getpid()


def test_two_threads_of_one_process_are_two(tmp_path):
  with (
    lock.held(str(tmp_path)),
    pytest.raises(lock.InUseError, match=f'process {os.getpid()} on'),
    lock.held(str(tmp_path)),
  ):
    pass


def test_a_file_system_without_locks_is_a_warning(
  tmp_path, monkeypatch, caplog
):
  def refuse(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr('fcntl.flock', refuse)
  with caplog.at_level(logging.WARNING, 'dhat_jax'), lock.held(str(tmp_path)):
    pass
  assert 'cannot lock files (Function not implemented)' in caplog.text
