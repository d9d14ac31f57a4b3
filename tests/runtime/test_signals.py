"""Signals while the main thread is busy; the second Ctrl-C; nohup."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dhat_jax.runtime import signals

BUSY = """
import hashlib, os, signal, sys
from dhat_jax.runtime import signals

def stop(number):
  print('asked', flush=True)
  if 'waits' not in sys.argv:
    os._exit(signals.exit_code(number))

if 'ignores' in sys.argv:
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals.watched(stop):
  print('ready', flush=True)
  # As the compiler does: no handler of Python's runs before it is done.
  hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)
"""


def start(*options):
  process = subprocess.Popen(
    [sys.executable, '-c', BUSY, *options], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  return process


def end(process):
  try:
    return process.communicate(timeout=20)[0], process.returncode
  finally:
    process.kill()


@pytest.mark.parametrize(
  ('number', 'code'),
  [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_at_once_whatever_the_main_thread_does(number, code):
  process = start()
  process.send_signal(number)
  assert end(process) == ('asked\n', code)


def test_a_second_interrupt_ends(tmp_path):
  process = start('waits')
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == 'asked\n'
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == 'asked\n'
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert end(process) == ('', 130)


def test_what_nohup_ignores_stays_ignored():
  process = start('ignores')
  process.send_signal(signal.SIGHUP)
  time.sleep(0.2)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert end(process) == ('asked\n', 0)


def test_in_a_program_of_ones_own():
  """A function inside the context; what was before, after it."""
  before = [signal.getsignal(number) for number in signals.STOPPING]
  received = []
  with signals.redirected(received.append):
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert received == [signal.SIGHUP, signal.SIGINT]
  assert before == [signal.getsignal(number) for number in signals.STOPPING]


def test_a_stage_has_the_signal_while_it_trains():
  received = []
  with signals.watched(received.append) as watch:
    with signals.redirected(lambda number: received.append(-number)):
      os.kill(os.getpid(), signal.SIGHUP)
      deadline = time.monotonic() + 10
      while not received and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    while len(received) < 2 and time.monotonic() < deadline:
      time.sleep(0.01)
  assert received == [-signal.SIGHUP, signal.SIGTERM]
  assert watch.received == signal.SIGHUP
