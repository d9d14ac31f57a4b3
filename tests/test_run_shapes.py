"""Whole runs, audit and report included: two classes, images of any shape."""

import os

import numpy as np
import pytest

from dhat_jax import main as command
from dhat_jax.attacks.autoattack import checks
from dhat_jax.runtime import files
from tests.helpers import tiny_run


@pytest.mark.slow
def test_a_run_on_other_shapes(tmp_path):
  shape, classes = (6, 9, 2), 2
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 96), ('test', 30)):
    arrays[f'x_{split}'] = rng.integers(0, 256, (count, *shape), np.uint8)
    arrays[f'y_{split}'] = np.arange(count) % classes
  np.savez(tmp_path / 'images.npz', **arrays)
  attacks = ('clean', 'pgd_2', 'cw_2', 'autoattack')
  config = tiny_run.get_config(
    **{
      'dataset.name': 'noise',
      'dataset.loader': 'npz',
      'dataset.data_dir': str(tmp_path / 'images.npz'),
      'dataset.num_classes': classes,
      'dataset.validation_size': 16,
      'dataset.crop_padding': 1,
      'model.mean': (),
      'model.std': (),
      'evaluation.attacks': attacks,
      'evaluation.norm': 'l2',
      'evaluation.autoattack_outputs': ('aggregated',),
      'evaluation.autoattack_n_iter': 2,
      'evaluation.autoattack_queries': 5,
      'evaluation.autoattack_targets': 1,
      'evaluation.audit': True,
      'evaluation.audit_steps': 2,
      'evaluation.audit_queries': 5,
      'evaluation.batch_size': 16,
    }
  )
  directory = str(tmp_path / 'run')
  command.run(config, directory, 'train')
  results = files.read_json(os.path.join(directory, 'results.json'))
  names = [name.split('(')[0] for name in results['accuracy']['aggregated']]
  assert names == list(attacks)
  (ensemble,) = results['autoattack']['aggregated'].values()
  assert list(ensemble['accuracy_after'])[1:] == list(
    checks.VERSIONS['standard']
  )
  assert ensemble['differences'][0].startswith('2 classes: apgd-t maximises')
  assert len(results['confusion']['aggregated']['clean']) == classes
  assert 'flags' in results['audit']
  assert os.path.getsize(os.path.join(directory, 'report.html')) > 10_000
