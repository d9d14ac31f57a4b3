"""Each check fails on what it is about, and passes on what is sound."""

import pytest

from dhat_jax.report.sanity import failures, warnings
from tests.report.evaluated import make, right


def records(**attacks):
  """Records of the main head, clean and attacked, of 200 images."""
  return {'main': {'clean': right(190, 10), **attacks}}


def per_class(*images):
  return {
    'main': {
      str(place): {'images': count, 'clean': 0.5, 'worst_case': 0.1}
      for place, count in enumerate(images)
    }
  }


SOUND = {
  'sweep': {'main': {'0/255': 0.9, '16/255': 0.1, '8/255': 0.4}},
  'loss_by_steps': {
    'main': {'0': [0.5, 0.9], '20': [1.99, 0.4], '5': [2.0, 0.4]}
  },
  'per_class': per_class(120, 80),
}


def test_a_sound_run_passes(tmp_path):
  attacks = {
    'fgsm': right(120, 80),
    'pgd_20': right(100, 100),
    'pgd_40': right(99, 101),
    'autoattack': right(101, 99),  # 1 % more than PGD is chance
  }
  assert failures(make(tmp_path, records(**attacks), **SOUND)) == []


@pytest.mark.parametrize(
  ('attacks', 'results', 'sentence'),
  [
    (
      {'fgsm': right(100, 100), 'pgd_20': right(9), 'pgd_40': right(110, 90)},
      {},
      'Against the main head, pgd_40 leaves 55.0 % and the weaker fgsm only '
      '50.0 %: the gradient may be hidden.',
    ),
    (
      {'pgd_40': right(80, 120), 'autoattack': right(100, 100)},
      {},
      'Against the main head, autoattack leaves 50.0 % and the weaker pgd_40 '
      'only 40.0 %: the gradient may be hidden.',
    ),
    (
      {},
      {'sweep': {'main': {'0/255': 0.9, '32/255': 0.3, '16/255': 0.25}}},
      'The accuracy of the main head rises from 25.0 % at epsilon 16/255 to '
      '30.0 % at 32/255: the attack fails there.',
    ),
    (
      {},
      {'loss_by_steps': {'main': {'20': [1.5, 0.4], '5': [2.0, 0.4]}}},
      'The loss of the main head falls from 2 after 5 attack steps to 1.5 '
      'after 20: the attack fails.',
    ),
    (
      {},
      {'per_class': per_class(195, 5)},
      'On clean images the main head is right on 95.0 %, no more than always '
      'naming one class (97.5 %): it has learned nothing.',
    ),
  ],
)
def test_what_is_not_sound_is_a_sentence(attacks, results, sentence, tmp_path):
  run = make(tmp_path, records(**attacks), **{**SOUND, **results})
  assert failures(run) == [sentence]


def test_an_attack_on_the_first_images_is_not_compared(tmp_path):
  """They may be easier ones."""
  attacks = {
    'pgd_40': right(80, 120),
    'autoattack(images=100)': right(80, 20),
  }
  assert failures(make(tmp_path, records(**attacks))) == []


def test_what_autoattack_warns_of(tmp_path):
  details = {'main': {'autoattack': {'warnings': ['gradients vanish']}}}
  run = make(tmp_path, records(autoattack=right(200)), autoattack=details)
  assert warnings(run) == [
    'autoattack on the main head warns: gradients vanish.'
  ]
  assert failures(run) == []
