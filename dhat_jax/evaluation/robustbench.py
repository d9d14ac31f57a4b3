"""An entry in the form of RobustBench's model descriptions."""

import re
from collections.abc import Mapping
from typing import Any

from dhat_jax.evaluation import best_known
from dhat_jax.evaluation.attack_types import STANDARD
from dhat_jax.models.dual_head import AGGREGATORS  # with all of them
from dhat_jax.models.outputs import OUTPUTS, final


def _architecture(backbone: str) -> str:
  if match := re.fullmatch(r'(?:dm_)?wrn(\d+)_(\d+(?:\.\d+)?)', backbone):
    return f'WideResNet-{match[1]}-{match[2]}'
  names = {'resnet18': 'ResNet-18', 'preact_resnet18': 'PreActResNet-18'}
  return names.get(backbone, backbone)


def _radius(spec: Mapping[str, Any]) -> str:
  over_255 = spec.get('epsilon_255')
  return f'{spec["epsilon"]}' if over_255 is None else f'{over_255:g}/255'


def _names(output: str, config: Mapping[str, Any]) -> dict[str, str]:
  """Returns the names of the entry; the method only if it was attacked.

  A mean of the heads is the method's control, with an aggregator or not. An
  aggregator that is fitted belongs to another method.
  """
  aggregator = AGGREGATORS.get(config['model'].get('aggregator'))
  fitted = getattr(aggregator, 'fit', None) is not None
  learned = getattr(aggregator, 'trains', True) or fitted
  if OUTPUTS[output].aggregates and learned and not fitted:
    return {
      'link': 'https://arxiv.org/abs/2104.10377',
      'name': 'Dual Head Adversarial Training',
      'authors': 'Yujing Jiang, Xingjun Ma, Sarah Monazam Erfani, James Bailey',
      'venue': 'IJCNN 2021',
    }
  plain = OUTPUTS[output].parts == OUTPUTS['main'].parts
  label = '' if plain else f' ({_label(output, learned)})'
  name = f'{config["name"]}{label}'
  return {'link': '', 'name': name, 'authors': '', 'venue': ''}


def _label(output: str, learned: bool) -> str:
  """Returns the label of an output; a mean is called a mean."""
  is_mean = bool(OUTPUTS[output].aggregates) and not learned
  return OUTPUTS['mean' if is_mean else output].label


def _extra(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns `dataset.extra` if its images were trained on, else {}."""
  extra = config.get('dataset', {}).get('extra', {})
  return extra if extra.get('files') else {}


def _external(
  output: str, numbers: Mapping[str, Any], results: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Returns the best known numbers of AutoAttack's images, {} if unknown."""
  best = results.get('best_known', {}).get(output, {})
  return best if best.get('images') == numbers['images'] else {}


def _notes(
  output: str,
  numbers: Mapping[str, Any],
  results: Mapping[str, Any],
  flags: list[str],
) -> list[str]:
  """Returns the sentences of the footnote."""
  notes = [
    'Trained and evaluated with dhat_jax, config '
    f'{results["config"]["name"]}, output {output}; {numbers["images"]} test '
    'images.'
  ]
  if numbers['not_standard']:
    notes.append(
      f'NOT the standard budget: {dict(numbers["not_standard"])} in place of '
      f'{STANDARD}.'
    )
  notes += [f'{line}.' for line in numbers.get('differences', ())]
  if extra := _extra(results['config']):
    notes.append(
      f'{100 * extra["fraction"]:g} % of each training batch are extra images. '
      'additional_data is false if they were generated from the training '
      'images alone.'
    )
  if best := _external(output, numbers, results):
    notes.append(f'External: all attacks together. {best["sentence"]}')
  if flags:
    notes.append(f'The audit raised red flags: {", ".join(flags)}.')
  return notes


def entry(results: Mapping[str, Any]) -> dict[str, Any] | None:
  """Describes a run as RobustBench describes models.

  Numbers are texts in percent, as there. RobustBench does not accept smaller
  budgets or fewer images; `footnote` and `unreliable` report these. `external`
  is the best known accuracy, over all attacks of the run.

  Args:
    results: as in results.json.

  Returns:
    The entry of the final one of the outputs that AutoAttack attacked, or None
    if it did not run.
  """
  runs = {
    output: numbers
    for output, attacks in results.get('autoattack', {}).items()
    for name, numbers in attacks.items()
    if best_known.is_autoattack(name)
  }
  if not runs:
    return None
  output = final(runs)
  numbers = runs[output]
  config = results['config']
  flags = [flag['name'] for flag in results.get('audit', {}).get('flags', ())]
  accuracy = numbers['accuracy_after']
  robust = f'{100 * list(accuracy.values())[-1]:.2f}'
  heads = [part for part in OUTPUTS[output].parts if part.endswith('_head')]
  best = _external(output, numbers, results)
  architecture = _architecture(config['model']['backbone'])
  return {
    **_names(output, config),
    'additional_data': bool(_extra(config)),
    'number_forward_passes': numbers['not_standard'].get('samples', 1),
    'dataset': results['dataset'],
    'architecture': architecture + (', two heads' if len(heads) > 1 else ''),
    'eps': _radius(config['evaluation']),
    'clean_acc': f'{100 * accuracy["clean"]:.2f}',
    'reported': robust,
    'autoattack_acc': robust,
    **({'external': f'{100 * best["accuracy"]:.2f}'} if best else {}),
    'footnote': ' '.join(_notes(output, numbers, results, flags)),
    'unreliable': bool(numbers['not_standard'] or flags),
  }
