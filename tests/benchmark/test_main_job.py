import pytest

from dhat_jax.benchmark import main_job
from dhat_jax.configs import digits


@pytest.fixture
def config():
  config = digits.get_config()
  config.compare_with_natural = False
  config.stages = ('main_head',)
  config.main_head.epochs = 0.1
  config.main_head.attack.steps = 1
  config.validation.attack = 'pgd_1'
  config.evaluation.attacks = ('clean',)
  return config


@pytest.mark.slow
def test_two_starts(config):
  lines = []
  measured = main_job.run(config, report=lines.append)
  first, second = measured['rows']
  assert [row['start'] for row in measured['rows']] == ['first', 'second']
  assert first['programs'] == second['programs'] > 10
  assert first['compiled'] > 10
  assert second['compiled'] == 0
  assert second['compile_seconds'] < first['compile_seconds']
  assert 0 < first['stages_seconds'] < first['seconds']
  assert first['natural_seconds'] == 0
  assert 100 < first['peak_mib'] < 2000
  assert lines[0] == f'first start: {first["seconds"]:.1f} s'
  assert '\n| first ' in main_job.table(measured)


@pytest.mark.slow
def test_a_failed_run_is_an_error(config, tmp_path):
  config.main_head.batch_size = -1
  with pytest.raises(ValueError, match='ended with exit code 2'):
    main_job.measure(config, str(tmp_path / 'run'), str(tmp_path / 'cache'))
