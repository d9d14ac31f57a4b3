"""The half hour on an accelerator, rehearsed on the CPU with tiny sizes."""

import dataclasses
import functools

import numpy as np
import pytest

from dhat_jax.runtime import config_file, documents
from experiments import accelerator, accelerator_cases, accelerator_doctor

TINY = 'tests/helpers/tiny_run.py'


def test_distance_is_relative_and_counts_flags():
  vector = np.array([3.0, 4.0])
  assert accelerator_doctor.distance(vector * 1.5, vector) == 0.5
  assert accelerator_doctor.distance(vector * np.nan, vector) == np.inf
  flags = np.array([True, True, False, False])
  assert accelerator_doctor.distance(~flags[::-1], flags) == 0
  assert accelerator_doctor.distance(np.ones(4, bool), flags) == 0.5


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['doctor', '--seconds=0'], r'--seconds: got 0\.0, expected a finite'),
    (['doctor', '--workers=0'], '--workers: got 0'),
    (['doctor', '--seconds=inf'], '--seconds: got inf, expected a finite'),
    (['train', '--data_dir=x', '--seconds=nan'], '--seconds: got nan'),
    (['train', '--data_dir=x', '--epochs=0'], '--epochs: got 0'),
    (['train', '--data_dir=x', '--train_images=-1'], '--train_images: got -1'),
    (['train', '--data_dir=x', '--batch_size=0'], '--batch_size: got 0'),
    (['speed', '--repeats=-1'], '--repeats: got -1, expected at least 1'),
    (['speed', '--images=0'], '--images: got 0'),
    (['speed', '--batch_size', '8', '0'], '--batch_size: got 0'),
  ],
)
def test_mistakes(arguments, message):
  with pytest.raises(ValueError, match=message):
    accelerator.parse(arguments)


def test_rows_go_into_the_workdir():
  options = accelerator.parse(['speed', '--workdir=runs/there'])
  assert options.out == 'runs/there/accelerator_speed.json'
  assert accelerator.parse(['doctor', '--out=a.json']).out == 'a.json'


def test_what_is_given_twice_is_measured_once():
  options = accelerator.parse(
    ['speed', '--config', 'a.py', 'b.py', 'a.py', '--batch_size', *'8486']
  )
  assert options.config == ['a.py', 'b.py']
  assert options.batch_size == [8, 4, 6]


def test_configs_of_one_backbone_are_refused(tmp_path):
  with pytest.raises(ValueError, match='--config: got the backbones'):
    accelerator.main(
      [
        *('speed', f'--workdir={tmp_path}', '--batch_size=4', '--config'),
        *(
          'configs/cifar10.py:trades_wrn10_2',
          'configs/cifar10.py:sat_wrn10_2',
        ),
      ]
    )


@pytest.fixture
def rehearse(tmp_path):
  """Runs a slice's command; returns (exit code, JSON)."""

  def run(name, *arguments):
    out = str(tmp_path / f'{name}.json')
    code = accelerator.main(
      [name, f'--out={out}', f'--workdir={tmp_path / "work"}', *arguments]
    )
    return code, documents.read(out)

  return run


@pytest.mark.slow
def test_doctor(rehearse, tmp_path, capsys):
  arguments = f'--config={TINY}', '--workers=2'
  code, document = rehearse('doctor', *arguments)
  rows = {row['item']: row for row in document['rows']}
  assert code == 0, capsys.readouterr().out
  assert 'xla_flags' in rows.pop('machine')
  stages = 'main_head', 'second_head', 'aggregator'
  assert rows.keys() == {
    *('logits/highest', 'logits/default'),
    *(f'step/{s}/{d}' for s in stages for d in ('float32', 'bfloat16')),
    *(f'attack/{name}' for name in accelerator_cases.ATTACKS),
  }
  for row in rows.values():
    assert row['agrees']
    assert row['distances'].keys() == row['tolerances'].keys()
  assert '| step/main_head/bfloat16 ' in ''.join(document['table'])
  # About half of the images resist, so that equal flags say something.
  assert 0.3 < rows['attack/pgd_10']['resist'] < 0.7
  assert all('resist' in row for name, row in rows.items() if 'attack/' in name)
  # A wrong value on the CPU's side is noticed, and nothing else is run again.
  path = tmp_path / 'work' / 'reference' / 'logits-highest.npz'
  with np.load(path) as values:
    wrong = 1.1 * values['logits']
  np.savez(path, logits=wrong)
  del rows['logits/highest']
  documents.write(
    str(tmp_path / 'doctor.json'), {**document, 'rows': list(rows.values())}
  )
  code, again = rehearse('doctor', *arguments)
  assert code == 1
  new = {row['item']: row for row in again['rows']}
  assert not new['logits/highest']['agrees']
  assert 'DIFFERS: logits 0.09' in capsys.readouterr().out
  assert all(new[name] == row for name, row in rows.items())
  # Nothing is measured in so short a time.
  code = accelerator.main(
    [
      *('doctor', *arguments, '--seconds=0.001'),
      f'--workdir={tmp_path / "work"}',
    ]
  )
  assert code == 3
  assert capsys.readouterr().out.endswith('0 of 17 measured\n')


@pytest.mark.slow
def test_doctor_notices_a_missing_attack():
  config = config_file.read(TINY)
  given = accelerator_cases.Problem(config).inputs()
  problem = accelerator_cases.Problem(config, lambda: given)
  names = 'step/main_head/float32', 'attack/pgd_10'
  whole = {c.name: c for c in accelerator_cases.cases(problem)}
  values = {name: whole[name].observe() for name in names}
  config = config.copy_and_resolve_references()
  config.main_head.attack.steps = 0
  inert = accelerator_cases.Problem(config, lambda: given)
  steps = {c.name: c for c in accelerator_cases.cases(inert)}
  for dtype in ('float32', 'bfloat16'):
    case = steps[f'step/main_head/{dtype}']
    row = accelerator_doctor.compare(case, values.get)
    assert not row['agrees']
    assert row['distances']['robust_loss'] > 0.9
  attack = dataclasses.replace(
    whole['attack/pgd_10'], observe=functools.partial(problem.attack, 'clean')
  )
  row = accelerator_doctor.compare(attack, values.get)
  assert row['resist'] == 1
  for name in ('robust', 'effect'):
    assert row['distances'][name] > 4 * row['tolerances'][name]
