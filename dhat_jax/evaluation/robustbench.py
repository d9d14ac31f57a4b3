"""An entry in the form of RobustBench's model descriptions."""

import re
from collections.abc import Mapping
from typing import Any

from dhat_jax.evaluation.ensemble import STANDARD


def _architecture(backbone: str) -> str:
  if match := re.fullmatch(r'wrn(\d+)_(\d+(?:\.\d+)?)', backbone):
    return f'WideResNet-{match[1]}-{match[2]}'
  names = {'resnet18': 'ResNet-18', 'preact_resnet18': 'PreActResNet-18'}
  return names.get(backbone, backbone)


def _radius(spec: Mapping[str, Any]) -> str:
  over_255 = spec.get('epsilon_255')
  return f'{spec["epsilon"]}' if over_255 is None else f'{over_255:g}/255'


def entry(results: Mapping[str, Any]) -> dict[str, Any] | None:
  """Describes a run as RobustBench describes models.

  Numbers are texts in percent, as there. What RobustBench would not accept, a
  smaller budget or fewer images, is said in `footnote`, with `unreliable`.

  Args:
    results: as in results.json.

  Returns:
    The entry of the last output that AutoAttack attacked, or None if it did
    not run.
  """
  found = [
    (output, name, numbers)
    for output, runs in results.get('autoattack', {}).items()
    for name, numbers in runs.items()
    if name.split('(')[0] == 'autoattack'
  ]
  if not found:
    return None
  output, _, numbers = found[-1]
  config = results['config']
  dual = output != 'main'
  notes = [
    f'Trained and evaluated with dhat_jax, config {config["name"]}, output '
    f'{output}; {numbers["images"]} test images.'
  ]
  reduced = dict(numbers['not_standard'])
  if reduced:
    notes.append(f'NOT the standard budget: {reduced} in place of {STANDARD}.')
  red = [flag['name'] for flag in results.get('audit', {}).get('flags', ())]
  if red:
    notes.append(f'The audit raised red flags: {", ".join(red)}.')
  accuracy = numbers['accuracy_after']
  robust = f'{100 * list(accuracy.values())[-1]:.2f}'
  architecture = _architecture(config['model']['backbone'])
  return {
    'link': 'https://arxiv.org/abs/2104.10377' if dual else '',
    'name': 'Dual Head Adversarial Training' if dual else config['name'],
    'authors': (
      'Yujing Jiang, Xingjun Ma, Sarah Monazam Erfani, James Bailey'
      if dual
      else ''
    ),
    'additional_data': False,
    'number_forward_passes': 1,
    'dataset': results['dataset'],
    'venue': 'IJCNN 2021' if dual else '',
    'architecture': architecture + (', two heads' if dual else ''),
    'eps': _radius(config['evaluation']),
    'clean_acc': f'{100 * accuracy["clean"]:.2f}',
    'reported': robust,
    'autoattack_acc': robust,
    'footnote': ' '.join(notes),
    'unreliable': bool(reduced or red),
  }
