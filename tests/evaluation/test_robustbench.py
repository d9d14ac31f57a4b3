import pytest

from dhat_jax.evaluation import robustbench
from dhat_jax.models.outputs import OUTPUTS, Output


def test_robustbench_entry():
  numbers = {
    'images': 10_000,
    'not_standard': {},
    'accuracy_after': {'clean': 0.8492, 'apgd-ce': 0.6, 'square': 0.53084},
  }
  results = {
    'dataset': 'cifar10',
    'config': {
      'name': 'run',
      'model': {'backbone': 'wrn34_10'},
      'evaluation': {'epsilon': 0.031, 'epsilon_255': None},
    },
    'autoattack': {'main': {'autoattack': numbers}},
  }
  entry = robustbench.entry(results)
  assert entry['clean_acc'] == '84.92'
  assert entry['autoattack_acc'] == '53.08'
  assert entry['eps'] == '0.031'
  assert entry['architecture'] == 'WideResNet-34-10'
  assert entry['unreliable'] is False
  assert entry['additional_data'] is False
  assert 'extra images' not in entry['footnote']
  assert 'external' not in entry
  sentence = 'transfer_main breaks 3 images that AutoAttack left robust.'
  best = {'accuracy': 0.52789, 'images': 10_000, 'sentence': sentence}
  entry = robustbench.entry({**results, 'best_known': {'main': best}})
  assert entry['external'] == '52.79'
  assert entry['autoattack_acc'] == '53.08'
  assert entry['footnote'].endswith(sentence)
  # Of fewer images than AutoAttack's: another number.
  best = {'main': {**best, 'images': 9_000}}
  entry = robustbench.entry({**results, 'best_known': best})
  assert 'external' not in entry
  assert sentence not in entry['footnote']
  results['config']['dataset'] = {'extra': {'files': ['a'], 'fraction': 0.7}}
  results['config']['model']['backbone'] = 'dm_wrn28_10'
  entry = robustbench.entry(results)
  assert entry['additional_data'] is True
  assert '70 % of each training batch are extra images.' in entry['footnote']
  assert entry['architecture'] == 'WideResNet-28-10'
  numbers['differences'] = ['3 classes: so and so']
  assert ' 3 classes: so and so.' in robustbench.entry(results)['footnote']
  reduced = {**numbers, 'not_standard': {'n_iter': 5}}
  results['autoattack']['aggregated'] = {'autoattack(n_iter=5)': reduced}
  results['config']['evaluation']['epsilon_255'] = 8.0
  entry = robustbench.entry(results)
  assert entry['eps'] == '8/255'
  assert entry['unreliable'] is True
  assert "{'n_iter': 5}" in entry['footnote']
  assert entry['name'] == 'Dual Head Adversarial Training'
  assert entry['number_forward_passes'] == 1
  reduced['not_standard'] = {'samples': 10}  # of a randomised network
  assert robustbench.entry(results)['number_forward_passes'] == 10
  assert robustbench.entry({'config': {}}) is None


def test_the_final_output_is_described(monkeypatch):
  row = Output(('trunk', 'third_head'), 'third head', stage='third_head')
  monkeypatch.setitem(OUTPUTS, 'third', row)
  assert entry_of('third', 'mean')['name'] == 'run (third head)'
  entry = entry_of('aggregated', also='third')
  assert entry['name'] == 'Dual Head Adversarial Training'


def entry_of(output, aggregator='pairwise', also=None):
  numbers = {
    'images': 10,
    'not_standard': {},
    'accuracy_after': {'clean': 0.5, 'square': 0.25},
  }
  return robustbench.entry(
    {
      'dataset': 'digits',
      'config': {
        'name': 'run',
        'model': {'backbone': 'resnet18', 'aggregator': aggregator},
        'evaluation': {'epsilon': 0.1},
      },
      'autoattack': {
        name: {'autoattack': numbers} for name in (output, also) if name
      },
    }
  )


@pytest.mark.parametrize(
  ('output', 'aggregator', 'name', 'heads'),
  [
    ('main', 'pairwise', 'run', False),
    ('second', 'pairwise', 'run (second head)', False),
    ('mean', 'pairwise', 'run (mean of the heads)', True),
    ('aggregated', 'mean', 'run (mean of the heads)', True),
    ('aggregated', 'mixed', 'run (aggregated)', True),
    ('aggregated', 'pairwise', 'Dual Head Adversarial Training', True),
  ],
)
def test_only_the_method_has_its_name(output, aggregator, name, heads):
  entry = entry_of(output, aggregator)
  assert entry['name'] == name
  assert ('two heads' in entry['architecture']) == heads
  assert (
    bool(entry['authors'])
    == bool(entry['link'])
    == (name == 'Dual Head Adversarial Training')
  )
