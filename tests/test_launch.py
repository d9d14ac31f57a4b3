"""The scripts in launch/: their dry runs, several processes, the notebook."""

import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import processes

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / 'launch'
CONFIG = '--config=configs/digits.py'
STAGES = '--config.stages=("main_head",)'
# Seconds of training instead of minutes.
SHORT = [
  '--config.compare_with_natural=False',
  '--config.evaluation.attacks=("clean",)',
  *(
    f'--config.{stage}.{key}'
    for stage in ('main_head', 'second_head', 'aggregator')
    for key in ('epochs=0.5', 'attack.steps=1')
  ),
]


def script(name, *arguments, check=True):
  return subprocess.run(
    ['bash', str(LAUNCH / name), *arguments],
    capture_output=True,
    text=True,
    check=check,
    cwd=ROOT,
  )


def check_doctor(command):
  """Parses a command of the doctor, and runs nothing."""
  assert command[1:3] == ['-m', 'experiments.accelerator']
  options = importlib.import_module(command[2]).parse(command[3:])
  assert options.slice == 'doctor'
  assert options.out == 'runs/doctor/doctor.json'
  assert options.workdir == 'runs/doctor'
  return options


def check_flags(arguments):
  """Parses flags as the command does, and runs nothing."""
  done = subprocess.run(
    [sys.executable, '-m', 'dhat_jax.main', *arguments, '--only_check_args'],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr


def test_local_processes_dry_run():
  out = script(
    *('local_processes.sh', '--dry-run', '--processes=3', '--cpu_devices=4'),
    *(CONFIG, STAGES),
  ).stdout
  commands = [shlex.split(line) for line in out.splitlines()]
  assert len(commands) == 3
  ports = set()
  for index, command in enumerate(commands):
    assert command[:5] == ['python', '-m', 'dhat_jax.main', CONFIG, STAGES]
    assert command[5] == '--cpu_devices=4'
    assert command[7:] == ['--num_processes=3', f'--process_id={index}']
    ports.add(command[6])
  assert len(ports) == 1
  check_flags(commands[0][3:])


def test_local_processes_refuses_no_number():
  done = script('local_processes.sh', '--processes=two', check=False)
  assert done.returncode == 2
  assert "got 'two', expected a number" in done.stderr


def test_slurm_dry_run():
  out = script('slurm.sbatch', '--dry-run', CONFIG, STAGES).stdout
  command = shlex.split(out)
  assert command[:5] == [
    *('srun', '--kill-on-bad-exit=1', 'python', '-m', 'dhat_jax.main')
  ]
  assert command[5:] == ['--distributed', CONFIG, STAGES]
  check_flags(command[5:])
  text = (LAUNCH / 'slurm.sbatch').read_text()
  assert '#SBATCH --signal=TERM@120' in text
  assert '#SBATCH --requeue' in text


def test_slurm_doctor_dry_run():
  out = script('slurm.sbatch', '--dry-run', '--doctor', '--seconds=60').stdout
  command = shlex.split(out)
  assert command[:3] == ['srun', '--nodes=1', '--ntasks=1']
  assert check_doctor(command[3:]).seconds == 60


def test_slurm_without_a_job():
  done = script('slurm.sbatch', CONFIG, check=False)
  assert done.returncode != 0
  assert 'run this by sbatch' in done.stderr


def test_tpu_vm_dry_runs():
  def command(*arguments):
    out = script('tpu_vm.sh', '--dry-run', *arguments).stdout
    return [shlex.split(line) for line in out.splitlines()]

  place = ['--zone=us-central2-b']
  gcloud = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  (create,) = command('create', 'me', 'us-central2-b', 'v4-32', '--spot')
  assert create[:5] == [*gcloud, 'create']
  assert '--accelerator-type=v4-32' in create
  assert create[-2:] == ['--spot', *place]
  install = command('install', 'me', 'us-central2-b')
  assert [line[4] for line in install] == ['ssh', 'scp', 'ssh']
  assert all('--worker=all' in line for line in install)
  # Again: the VM's runs stay, and its environment.
  text = ' '.join(part for line in install for part in line)
  assert "rm -rf dhat_jax'" not in text
  assert 'dhat_jax.new/runs' in text
  assert '--allow-existing' in text
  assert "-e '.[tpu]' 'jax[tpu]==0.12.0.1'" in text
  (doctor,) = command('doctor', 'me', 'us-central2-b', '--seconds=60')
  assert '--worker=0' in doctor
  (remote,) = (part for part in doctor if part.startswith('--command='))
  _, _, words = remote.partition(' exec ')
  assert check_doctor(shlex.split(words)).seconds == 60
  (run,) = command('run', 'me', 'us-central2-b', CONFIG, STAGES)
  (remote,) = (part for part in run if part.startswith('--command='))
  _, _, main = remote.partition(' -m dhat_jax.main ')
  assert shlex.split(main) == ['--distributed', CONFIG, STAGES]
  check_flags(shlex.split(main))
  assert command('delete', 'me', 'us-central2-b')[0][4] == 'delete'
  fetch = command('fetch', 'me', 'us-central2-b', 'runs/x')
  assert fetch[0] == ['mkdir', '-p', 'runs/x']


@pytest.mark.parametrize(
  ('accelerator', 'image'),
  [
    ('v4-8', 'tpu-ubuntu2204-base'),
    ('v5litepod-8', 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v6e-8', 'v2-alpha-tpuv6e'),
  ],
)
def test_tpu_vm_has_the_image_of_its_type(accelerator, image):
  out = script('tpu_vm.sh', '--dry-run', 'create', 'me', 'zone', accelerator)
  words = shlex.split(out.stdout)
  assert f'--accelerator-type={accelerator}' in words
  assert f'--version={image}' in words


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [(['run', 'me'], 'expected an action, NAME'), (['go', 'a', 'b'], "got 'go'")],
)
def test_tpu_vm_mistakes(arguments, message):
  done = script('tpu_vm.sh', '--dry-run', *arguments, check=False)
  assert done.returncode == 2
  assert message in done.stderr


@pytest.mark.parametrize(
  'name', ['local_processes.sh', 'tpu_vm.sh', 'slurm.sbatch', 'check.sh']
)
def test_scripts_open_with_what_they_do(name):
  first, second = (LAUNCH / name).read_text().splitlines()[:2]
  assert first == '#!/usr/bin/env bash'
  assert second.startswith('# ')


@pytest.mark.slow
def test_local_processes_run_and_stop(tmp_path):
  """A run of two processes, stopped by one signal, then to its end."""
  command = [
    *('bash', str(LAUNCH / 'local_processes.sh'), '--cpu_devices=1'),
    *('--config=tests/helpers/tiny_run.py', f'--workdir={tmp_path}', STAGES),
    *('--config.main_head.epochs=3', SHORT[1]),
  ]
  # The script runs `python`: this one, also where no environment is activated.
  folders = [os.path.dirname(sys.executable), os.environ['PATH']]
  environment = {
    **os.environ,
    'PATH': os.pathsep.join(folders),
    'PYTHONUNBUFFERED': '1',
  }
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  deadline = time.monotonic() + 200
  while not (tmp_path / 'checkpoints').is_dir():
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=200)
  assert process.returncode == 0, output
  assert {line[:3] for line in output.splitlines() if line[:1] == '['} >= {
    '[0]',
    '[1]',
  }
  assert 'resume with the same command' in output
  assert not (tmp_path / 'results.json').exists()
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=200,
  )
  assert done.returncode == 0, done.stdout
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['n_test'] == 360


def cell_with(word):
  """The one code cell of the notebook that contains a word."""
  cells = json.loads((LAUNCH / 'colab.ipynb').read_text())['cells']
  texts = (''.join(c['source']) for c in cells if c['cell_type'] == 'code')
  (text,) = (text for text in texts if word in text)
  return text


def test_notebook_is_committed_without_outputs():
  cells = json.loads((LAUNCH / 'colab.ipynb').read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert len(code) > 5
  assert not any(cell['outputs'] or cell['execution_count'] for cell in code)


def test_notebook_set_up_runs_again(tmp_path, monkeypatch):
  """In the same session, and after 'Restart session', where it began."""
  text = cell_with("'clone'")
  calls = []

  def run(command, **_):
    calls.append(command)
    if command[:2] == ['git', 'clone']:
      target = pathlib.Path(command[-1])
      assert not target.exists()  # as git demands
      (target / 'dhat_jax').mkdir(parents=True)
      (target / 'setup.cfg').touch()
    # Nothing is installed before pip has been called.
    missing = command[1] == '-c' and not any('pip' in each for each in calls)
    return subprocess.CompletedProcess(command, int(missing), 'jax', '')

  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.chdir(tmp_path)
  for folder in (None, None, tmp_path):
    if folder:
      monkeypatch.chdir(folder)
    exec(text, {'REPOSITORY': 'https://example.org/project.git'})
    assert pathlib.Path.cwd() == tmp_path / 'dhat_jax_project'
  assert sum(command[0] == 'git' for command in calls) == 1
  (install,) = (command for command in calls if 'pip' in command)
  assert install[1:6] == ['-m', 'pip', 'install', '-q', '-e']
  assert install[6] in ('.', '.[gpu]', '.[tpu]')
  # The address is needed for the first time alone.
  monkeypatch.chdir(tmp_path)
  exec(text, {'REPOSITORY': ''})
  monkeypatch.chdir(tmp_path.parent)
  with pytest.raises(SystemExit, match='give REPOSITORY above'):
    exec(text, {'REPOSITORY': ''})


def test_notebook_asks_the_doctor(capfd):
  text = cell_with("'experiments.accelerator'")
  names = {'subprocess': subprocess, 'sys': sys, 'extra': ''}
  exec(text, names)
  check_doctor(names['DOCTOR'])
  names['stream']([sys.executable, '-c', 'print("fine")'])
  assert capfd.readouterr().out == 'fine\n'
  with pytest.raises(SystemExit, match='failed with code 3'):
    names['stream']([sys.executable, '-c', 'raise SystemExit(3)'])


@pytest.mark.slow
def test_notebook_from_top_to_bottom(tmp_path, monkeypatch):
  nbformat = pytest.importorskip('nbformat')
  nbclient = pytest.importorskip('nbclient')
  monkeypatch.setenv('DHAT_FOLDER', str(tmp_path))
  monkeypatch.setenv('DHAT_OPTIONS', ' '.join(SHORT))
  monkeypatch.setenv('XLA_FLAGS', processes.optimised()['XLA_FLAGS'])
  notebook = nbformat.read(LAUNCH / 'colab.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(LAUNCH)}}
  )
  client.execute()
  workdir = tmp_path / 'notebook_digits'
  assert (workdir / 'results.json').exists()
  printed = [
    output.get('text', '')
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  assert any('aggregated' in text for text in printed)
  images = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if 'image/png' in output.get('data', {})
  ]
  assert len(images) == 1
