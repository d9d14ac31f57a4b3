"""The command, on a tiny network."""

import json
import re

import pytest

from dhat_jax.benchmark import __main__ as command
from dhat_jax.benchmark import scaling, training
from dhat_jax.runtime import documents
from tests.helpers import tiny_run

CONFIG = '--config=configs/digits.py'
SMALL = (
  '--config.model.backbone=tiny',
  '--config.main_head.attack.steps=1',
  '--repeats=2',
)


def run(capsys, *arguments):
  command.main(['benchmark', CONFIG, *arguments])
  return capsys.readouterr().out


def test_one_step_as_json(capsys, tmp_path):
  path = tmp_path / 'out.json'
  out = run(
    *(capsys, '--stage=main_head', '--batch_size=4', '--json'),
    *(f'--out={path}', *SMALL),
  )
  row = json.loads(out.splitlines()[-1])
  assert row['stage'] == 'main_head'
  assert row['batch_size'] == 4
  assert row['step_seconds'] > 0
  assert row['images_per_second'] == pytest.approx(4 / row['step_seconds'])
  assert row['compile_seconds'] > 0
  assert 0 < row['utilisation'] < 1
  assert row['memory']['donated'] > 0
  document = documents.read(str(path))
  assert document['rows'] == [row]
  assert document['machine']['versions']['jax']
  assert document['kind'] == 'benchmark'
  assert re.search(r'\n\| main_head +\| +4 \| +float32', out)


def test_pipeline(capsys):
  out = run(
    *(capsys, '--what=pipeline', '--stage=main_head', '--json'),
    *('--batch_size=4', '--steps=3'),
    *SMALL,
  )
  (row,) = json.loads(out.splitlines()[-1])['rows']
  assert row['steps'] == 3
  assert 0 <= row['waited_seconds'] < row['seconds']
  assert row['share'] == row['waited_seconds'] / row['seconds']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--what=nothing'], 'should be one of'),
    (['--stage=third'], r"--stage: got 'third', choices are \('main_head',"),
    (['--batch_size=0'], "--batch_size: got '0', expected integers"),
    (['--batch_size=3'], '--batch_size: got 3, expected a multiple of the 2'),
    (['--batch_size=8,16', '--what=peer'], 'expected one for --what=peer'),
    (['--dtype=int8'], "--dtype: got 'int8', choices are"),
    (['--repeats=0'], 'repeats'),
    (['--out=tests'], "--out: got 'tests', a folder, expected a file"),
    (['--target=h100:1'], r'--target: got --what=training, on which it has no'),
    (['--programs=fab'], r"no effect, choices are \('compile',\)"),
    (['--what=pipeline', '--dtype=bfloat16'], r'--dtype: got --what=pipeline'),
    (
      ['--what=largest', '--dtype=float32,bfloat16'],
      r"got \['float32', 'bfloat16'\], expected one for --what=largest",
    ),
    (['--what=main_job', '--stage=main_head'], r'--stage: got --what=main_job'),
    (
      ['--what=evaluation', '--cpu_devices=2'],
      r'--cpu_devices: got --what=eval',
    ),
    (['--what=largest', '--batch_size=8'], r'--batch_size: got --what=largest'),
    (['--seeds=2'], r"no effect, choices are \('parity',\)"),
    (['--what=parity', '--seeds=1'], 'seeds: got 1, expected'),
    (['--dtype='], '--dtype: got nothing, expected one or more'),
    (['--out=nowhere/x.json'], "'nowhere' is no folder"),
    (['surplus'], r"arguments: got \['surplus'\]"),
    (['--config.main_head.loss.name=mine'], "got 'mine', choices are"),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main(['benchmark', CONFIG, *arguments])
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert re.search(message, error), error


def test_config_is_asked_for(capsys):
  with pytest.raises(SystemExit):
    command.main(['benchmark'])
  assert '--config: got nothing' in capsys.readouterr().err


def test_help(capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main(['benchmark', '--help'])
  assert stopped.value.code == 0
  assert '--what=autoattack' in capsys.readouterr().out


AXES = scaling.Axes(
  batch_sizes=(2,),
  attack_steps=(2,),
  backbones=('wrn10_1',),
  classes=(100,),
  aggregators=('classwise',),
  devices=(1,),
  images=(4,),
  attacks=('apgd-ce',),
)


def test_scaling(capsys):
  # The process with one device reads the config of its file, which registers
  # the backbone.
  arguments = '--config=tests/helpers/tiny_run.py', *SMALL
  config = command._parse(['benchmark', *arguments]).config
  measured = scaling.run(
    config, 'main_head', 4, arguments, repeats=2, axes=AXES
  )
  assert '\ndevices 1: ' in capsys.readouterr().out
  rows = measured['rows']
  assert '\n| autoattack_images ' in scaling.table(measured)
  assert [(row['axis'], row['value']) for row in rows] == [
    ('batch_size', 2),
    ('attack_steps', 2),
    ('backbone', 'wrn10_1'),
    ('classes', '100 classwise'),
    ('devices', 1),
    ('autoattack_images', 4),
  ]
  assert all(row['step_seconds'] > 0 for row in rows)
  # Steps, batch, stage and number of devices are what they should be.
  assert [row.get('attack_steps') for row in rows[:3]] == [1, 2, 1]
  assert [row.get('batch_size') for row in rows] == [2, 4, 4, 4, 4, None]
  assert [row.get('stage') for row in rows[2:5]] == [
    'main_head',
    'aggregator',
    'main_head',
  ]
  assert [row.get('devices') for row in rows[3:5]] == [2, 1]


def test_a_config_is_not_changed_by_measuring():
  config = tiny_run.get_config()
  before = config.to_json()
  stage = training.make_stage(config, 'main_head', 6)
  assert stage.batch_size == 6
  problems = dict(scaling._problems(config, 'main_head', 4, scaling.AXES))
  steps = [
    problem.config.main_head.attack.steps
    for problem in problems['attack_steps'].values()
  ]
  assert steps == list(problems['attack_steps'])
  assert config.to_json() == before
