"""The command line: mistakes end in one line and exit code 2."""

import logging
import os
import re
import subprocess
import sys

import pytest

from dhat_jax import convert, main
from dhat_jax.benchmark import __main__ as benchmark
from dhat_jax.report import __main__ as report

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DIGITS = '--config=configs/digits.py'


def command(*arguments, cwd=ROOT, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'dhat_jax.main', *arguments],
    cwd=cwd,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


def run(*arguments):
  main.main(['main', *arguments, '--only_check_args'])


def values_of(*arguments):
  return main.parse(['main', *arguments])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=configs/nothing.py'], "got 'configs/nothing.py', which is no"),
    (['--config', '/missing.py'], "--config: got '/missing.py', which is no"),
    (['--config=configs/cifar10.py:trades_vgg'], "variant: got 'trades_vgg'"),
    (
      [DIGITS, '--config.sed=1'],
      'config.sed: no such key; nearest is config.seed',
    ),
    ([DIGITS, '--config.seed=x'], "config.seed: got 'x', expected an integer"),
    (['--config.seed=x'], "config.seed: got 'x', expected an integer"),
    ([DIGITS, '--mode=test'], '--mode=test: value should be one of <train|'),
    ([DIGITS, '--num_processes=0'], '--num_processes=0'),
    ([DIGITS, '--wrkdir=x'], '--wrkdir: no such flag; nearest is --workdir'),
    ([DIGITS, 'extra'], "got ['extra'], expected flags only"),
    (
      [DIGITS, '--config=configs/svhn.py'],
      "and 'configs/svhn.py', expected one",
    ),
    (
      [DIGITS, '--config.main_head.lr=1'],
      'config.main_head.lr: no such key; nearest are '
      'config.main_head.schedule.learning_rate, ',
    ),
    (
      [DIGITS, '--config.main_head.loss.name=tradez'],
      "config.main_head.loss.name: got 'tradez', choices are ",
    ),
    (
      [DIGITS, '--config.evaluation.attacks=("pgd40",)'],
      "config.evaluation.attacks: got 'pgd40', choices are ",
    ),
    (
      [DIGITS, '--config.model.backbone=wrn34x10'],
      "config.model.backbone: got 'wrn34x10', choices are ",
    ),
  ],
)
def test_mistakes_in_flags(arguments, message, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as stopped:
    run(*arguments)
  assert stopped.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith('error: ')
  assert printed.count('\n') == 1
  assert message in printed


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ['--config', 'missing.py'],
      "--config: got 'missing.py', which is no file",
    ),
    (
      [DIGITS, '--config.model.attach=block9'],
      "attach: got 'block9', choices are ('block1', 'block2')",
    ),
  ],
)
def test_mistakes(arguments, message, tmp_path):
  done = command(*arguments, f'--workdir={tmp_path}/run')
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  # Nothing was started.
  assert not (tmp_path / 'run').exists()


def test_overrides_of_one_stage_leave_the_others(monkeypatch):
  monkeypatch.chdir(ROOT)
  config = values_of(
    '--config.main_head.attack.steps=1',
    DIGITS,
    '--config.second_head.attack.steps=3',
    '--config.evaluation.sweep_epsilons_255=(4,)',
    '--config.evaluation.sweep_epsilons_255=(8,)',
  ).config
  stages = ('main_head', 'second_head', 'aggregator')
  assert [config[name].attack.steps for name in stages] == [1, 3, 10]
  assert config.evaluation.sweep_epsilons_255 == (8,)


def test_defaults(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  values = values_of()
  assert values.config.name == 'digits'
  assert values.mode == 'train'
  assert values.workdir is None
  assert [values[name].value for name in main._START_UP] == [
    False,
    *[None] * 4,
  ]


def test_what_is_run(monkeypatch, tmp_path):
  """The flags arrive; without --workdir the config's name says where."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(ROOT)
  calls = []
  monkeypatch.setattr(
    main, 'run', lambda *args, **options: calls.append((args, options))
  )
  monkeypatch.setattr('signal.signal', lambda *_: None)
  main.main(['main', DIGITS])
  main.main(
    [
      *('main', '--config', 'configs/svhn.py', '--workdir=~/x'),
      *('--mode=evaluate', '--cpu_devices', '3', '--distributed'),
    ]
  )
  (first, options), (second, others) = calls
  assert first[0].name == 'digits'
  assert first[1:] == (os.path.join('runs', 'digits'), 'train')
  assert not any(options.values())
  assert second[0].name == 'svhn'
  assert second[1:] == (str(tmp_path / 'x'), 'evaluate')
  assert (others['cpu_devices'], others['distributed']) == (3, True)


def test_only_check_args_starts_nothing(monkeypatch, tmp_path):
  """Neither data nor other processes are there, and nothing is written."""
  monkeypatch.setattr(main, 'run', None)
  monkeypatch.chdir(tmp_path)
  run(
    *('--config=configs/cifar10.py', '--distributed', '--workdir=run'),
    '--config.dataset.manual_dir=missing',
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('module', [main, convert, benchmark, report])
def test_help(module, capsys):
  """It is the module's docstring, and names every flag."""
  with pytest.raises(SystemExit) as stopped:
    module.main(['command', '--help'])
  assert stopped.value.code == 0
  printed = capsys.readouterr().out
  assert f'python -m {module.__name__.removesuffix(".__main__")}' in printed
  flags = set(re.findall(r'--(\w+)', printed))
  assert 'workdir' in flags
  if module is main:
    assert flags >= {*main._START_UP, 'config', 'mode', 'only_check_args'}


@pytest.mark.slow
def test_help_and_check_as_a_command(tmp_path):
  done = command('--help', cwd=tmp_path, PYTHONPATH=ROOT)
  assert done.returncode == 0
  assert 'Traceback' not in done.stderr
  assert '--workdir=DIR' in done.stdout
  assert '--config.main_head.epochs=10.0' in done.stdout
  done = command(
    *('--config=configs/cifar10.py', '--only_check_args'),
    cwd=tmp_path,
    PYTHONPATH=ROOT,
  )
  assert done.returncode == 0
  assert (
    "no file 'configs/cifar10.py' here, taking the installed" in done.stderr
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bug_in_the_config_file(tmp_path):
  """Its author sees where; the last line says what."""
  path = tmp_path / 'mine.py'
  path.write_text('def get_config():\n  return 1 / 0\n')
  done = command(f'--config={path}', '--only_check_args')
  assert done.returncode == 2
  assert 'return 1 / 0' in done.stderr
  assert done.stderr.splitlines()[-1] == (
    f'error: {path}: ZeroDivisionError: division by zero'
  )


@pytest.mark.slow
def test_runs_from_another_folder(tmp_path):
  """An absolute config path works anywhere; configs find each other."""
  done = command(
    f'--config={ROOT}/configs/cifar10.py',
    '--config.dataset.cache_dir=' + str(tmp_path / 'cache'),
    '--config.dataset.data_dir=' + str(tmp_path / 'missing'),
    '--config.dataset.loader=image_folder',
    cwd=tmp_path,
    PYTHONPATH=ROOT,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('starting runs/cifar10')
  assert 'train/<class>' in done.stderr
  assert 'Traceback' not in done.stderr


COUNTING = """
import collections, jax
from tests.helpers import tiny_run
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
tiny_run.main()
prefix = '/jax/compilation_cache/'
print(counts[prefix + 'compile_requests_use_cache'])
print(counts[prefix + 'cache_hits'])
"""


@pytest.mark.slow
def test_second_start_compiles_nothing(tmp_path):
  """By default: the cache is in the user's home."""
  environment = {**os.environ, 'HOME': str(tmp_path)}
  del environment['JAX_COMPILATION_CACHE_DIR']
  del environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS']
  compiled = []
  for name in ('first', 'second'):
    done = subprocess.run(
      [
        *(sys.executable, '-c', COUNTING, str(tmp_path / name)),
        'evaluation.attacks=("clean", "pgd_2")',
      ],
      capture_output=True,
      text=True,
      check=True,
      env=environment,
      cwd=ROOT,
    )
    requests, hits = map(int, done.stdout.splitlines()[-2:])
    assert requests > 50
    compiled.append(requests - hits)
  assert compiled[0] > 20
  assert compiled[1] == 0
  assert (tmp_path / '.cache' / 'dhat_jax' / 'xla').is_dir()


def test_a_session_leaves_no_logger_behind(capsys):
  logger = logging.getLogger('dhat_jax')
  before = list(logger.handlers), logger.level, logger.propagate
  with main.session():
    logger.info('inside')
  assert capsys.readouterr().err == 'inside\n'
  assert (list(logger.handlers), logger.level, logger.propagate) == before
