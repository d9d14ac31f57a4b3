"""Runs one program in several processes that form one JAX run."""

import os
import socket
import subprocess
import sys


def free_port():
  """A port that nothing listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def environment(cpu_devices):
  """The tests' environment, without the devices that it simulates."""
  env = dict(os.environ)
  # Threads enough for the collectives of all devices.
  env['NPROC'] = str(4 * cpu_devices)
  return env


def optimised():
  """The tests' environment, for networks of ordinary size.

  They compute too much for code without any optimisation, which suits tiny
  ones. Of two equal flags the last one counts.
  """
  flags = f'{os.environ["XLA_FLAGS"]} --xla_backend_optimization_level=1'
  return {**os.environ, 'XLA_FLAGS': flags}


def start(arguments, *, count, cpu_devices):
  """Starts `python -m ...` `count` times, as the parts of one run.

  Args:
    arguments: module and its arguments, '{process}' in them replaced by the
      process's number; flags of `processes.initialize` are added.
    count: number of processes.
    cpu_devices: of each process.

  Returns:
    The processes, their output piped as text.
  """
  address = f'"127.0.0.1:{free_port()}"'
  processes = []
  for index in range(count):
    flags = [f'--cpu_devices={cpu_devices}']
    if count > 1:
      flags += [
        f'--coordinator_address={address}',
        f'--num_processes={count}',
        f'--process_id={index}',
      ]
    own = [argument.replace('{process}', str(index)) for argument in arguments]
    processes.append(
      subprocess.Popen(
        [sys.executable, '-m', *own, *flags],
        env=environment(cpu_devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return processes


def run(arguments, *, count, cpu_devices, timeout=300):
  """Runs them to their end; returns what each printed."""
  processes = start(arguments, count=count, cpu_devices=cpu_devices)
  outputs = []
  try:
    for process in processes:
      outputs.append(process.communicate(timeout=timeout)[0])
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs
