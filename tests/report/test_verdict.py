"""The sentence at the top of a page, in every case."""

import pytest

from dhat_jax.report import verdict as module
from dhat_jax.report.sanity import failures
from dhat_jax.report.summary import blocks as summary
from tests.report.evaluated import make, right

CLEAN = right(190, 10)


def verdict(run):
  return module.verdict(run, failures(run))


def notes(run):
  return module.notes(run, failures(run))


def pair(main, aggregated, clean=CLEAN, attack='autoattack'):
  """Records of two outputs under one attack."""
  return {
    'main': {'clean': CLEAN, attack: main},
    'aggregated': {'clean': clean, attack: aggregated},
  }


# 200 images; of these the aggregated output gets 20 right that the main head
# does not, and the reverse. After half an image is added to each cell:
# (20.5 - .5) / 202 = .0990, error sqrt((21 / 202 - .0990 ** 2) / 202) = .0216.
MORE = pair(right(100, 100), right(120, 80))
FEWER = pair(right(120, 80), right(100, 100))
# 2 images more: 2 / 202, error sqrt((3 / 202 - .0099 ** 2) / 202) = .0085.
NOISE = pair(right(100, 100), right(102, 98))


@pytest.mark.parametrize(
  ('records', 'sentence'),
  [
    (
      MORE,
      'DH-AT is more robust than the main head: 60.0 % against 50.0 % in the '
      'worst case, +10.0 points (95 % interval +5.7 to +14.1).',
    ),
    (
      FEWER,
      'DH-AT is less robust than the main head: 50.0 % against 60.0 % in the '
      'worst case, -10.0 points (95 % interval -14.1 to -5.7).',
    ),
    (
      NOISE,
      'DH-AT and the main head do not differ in robustness beyond noise: '
      '51.0 % against 50.0 % in the worst case, +1.0 points (95 % interval '
      '-0.7 to +2.7).',
    ),
  ],
)
def test_better_worse_and_within_noise(records, sentence, tmp_path):
  run = make(tmp_path, records)
  assert verdict(run) == sentence
  assert not failures(run)
  assert notes(run) == [
    'Clean accuracy does not differ beyond noise: 95.0 % against 95.0 %, +0.0 '
    'points (95 % interval -1.0 to +1.0).',
    'There was no audit: hidden gradients are not ruled out.',
    'Intervals cover other test images of the kind, not other seeds.',
  ]


@pytest.mark.parametrize(
  ('clean', 'words'),
  [
    (right(200), 'is higher than that of the main head: 100.0 % against 95.0'),
    (right(160, 40), 'is lower than that of the main head: 80.0 % against 95.'),
  ],
)
def test_clean_accuracy_is_compared(clean, words, tmp_path):
  run = make(tmp_path, pair(right(100, 100), right(120, 80), clean))
  assert notes(run)[0].startswith(f'Clean accuracy {words}')


def test_pairs_decide_not_the_two_accuracies(tmp_path):
  """The same accuracies on other images: the interval is far wider."""
  run = make(tmp_path, pair(right(100, 100), right(30, 70, 90, 10)))
  assert 'do not differ in robustness beyond noise: 60.0 % against' in verdict(
    run
  )


def test_without_autoattack(tmp_path):
  run = make(tmp_path, pair(right(100, 100), right(120, 80), attack='pgd_40'))
  assert verdict(run).startswith(
    'Without AutoAttack, DH-AT is more robust than the main head: 60.0 %'
  )
  assert (
    'AutoAttack was not run against the aggregated output: under stronger '
    'attacks the worst case may be lower.'
  ) in notes(run)


def test_autoattack_of_another_budget(tmp_path):
  name = 'autoattack(n_iter=20,images=100)'
  run = make(tmp_path, pair(right(50, 50), right(60, 40), attack=name))
  assert verdict(run).startswith('DH-AT is more robust')
  assert f'* Not the standard AutoAttack: {name}.' in notes(run)
  assert 'AutoAttack*' in summary(run)[1].table.header
  assert (
    'AutoAttack and the worst case are of the first 100 of 200 images.'
  ) in notes(run)


def test_no_records(tmp_path):
  run = make(tmp_path, MORE, stored=False)
  assert verdict(run) == (
    'DH-AT differs from the main head by +10.0 points in the worst case; '
    'whether that is noise is open without the records of the images.'
  )
  assert notes(run)[0] == (
    'Whether clean accuracy differs from that of the main head beyond noise is '
    'unknown: 95.0 % against 95.0 %, +0.0 points.'
  )


def test_records_of_another_evaluation_do_not_count(tmp_path):
  make(tmp_path, FEWER)
  run = make(tmp_path, MORE, stored=False)
  assert 'is open without the records' in verdict(run)


def test_other_attacks_against_each_output(tmp_path):
  """Only the attacks that both saw are compared."""
  records = pair(right(100, 100), right(120, 80), attack='pgd_40')
  records['aggregated']['autoattack'] = right(60, 140)
  run = make(tmp_path / 'stored', records)
  assert verdict(run) == (
    'Without AutoAttack, DH-AT is more robust than the main head: +10.0 points '
    'under the attacks that both saw (95 % interval +5.7 to +14.1).'
  )
  run = make(tmp_path / 'bare', records, stored=False)
  assert verdict(run) == (
    'DH-AT cannot be compared with the main head: the attacks on the two '
    'differ, or their worst cases are missing.'
  )


def flag(name='square'):
  return {'name': name, 'sentence': 'it hides'}


def test_red_flags_come_first(tmp_path):
  audit = {'flags': [flag(), flag('transfer_main')], 'worst_case': 0.125}
  run = make(tmp_path, MORE, audit=audit)
  assert verdict(run) == (
    'Do not trust these accuracies: the audit raised 2 red flags; the '
    'aggregated output may only hide its gradients.'
  )
  assert notes(run)[:2] == [
    'As measured: DH-AT is more robust than the main head: 60.0 % against 50.0 '
    '% in the worst case, +10.0 points (95 % interval +5.7 to +14.1).',
    'Under all attacks of the audit, the aggregated output keeps 12.5 %.',
  ]
  first, *_ = summary(run)
  assert first.is_flag
  assert first.is_verdict


def test_an_audit_without_flags(tmp_path):
  run = make(tmp_path, MORE, audit={'flags': [], 'worst_case': 0.5})
  assert verdict(run).startswith('DH-AT is more robust')
  assert 'The audit raised no red flag.' in notes(run)
  assert not summary(run)[0].is_flag


def test_failed_checks_come_first(tmp_path):
  sweep = {'aggregated': {'8/255': 0.2, '16/255': 0.5}}
  run = make(tmp_path / 'a', MORE, sweep=sweep)
  assert verdict(run) == (
    'Do not trust these accuracies: 1 sanity check failed.'
  )
  assert summary(run)[1].text == failures(run)[0]
  audit = {'flags': [flag()], 'worst_case': 0.125}
  run = make(tmp_path / 'b', MORE, sweep=sweep, audit=audit)
  assert verdict(run) == (
    'Do not trust these accuracies: the audit raised 1 red flag and 1 sanity '
    'check failed; the aggregated output may only hide its gradients.'
  )


def test_one_stage_alone(tmp_path):
  records = {'main': MORE['main']}
  run = make(tmp_path / 'whole', records)
  assert verdict(run) == (
    'Only the main head was evaluated: it is right on 95.0 % of the clean '
    'images and on 50.0 % in the worst case, with nothing to compare it with.'
  )
  assert notes(run) == []
  sweep = {'main': {'8/255': 0.2, '16/255': 0.5}}
  run = make(tmp_path / 'failed', records, sweep=sweep)
  assert verdict(run).startswith('Do not trust these accuracies: 1 sanity')
  assert notes(run)[0].startswith('As measured: only the main head was')


def test_two_stages_without_an_aggregator(tmp_path):
  records = dict.fromkeys(('main', 'second'), MORE['main'])
  records['mean'] = MORE['aggregated']
  run = make(tmp_path / 'whole', records)
  assert verdict(run).startswith(
    'The mean of the heads is more robust than the main head: 60.0 %'
  )
  assert not any('audit' in note for note in notes(run))
  pgd = pair(right(100, 100), right(120, 80), attack='pgd_40')
  run = make(tmp_path / 'pgd', {'main': pgd['main'], 'mean': pgd['aggregated']})
  assert verdict(run).startswith(
    'Without AutoAttack, the mean of the heads is more robust than'
  )


def test_clean_images_alone(tmp_path):
  clean = {'clean': CLEAN}
  run = make(tmp_path / 'two', {'main': clean, 'aggregated': clean})
  nothing = 'No attack has been run: nothing is known about robustness.'
  assert verdict(run) == nothing
  run = make(tmp_path / 'one', {'main': clean})
  assert verdict(run) == (
    'Only the main head was evaluated: it is right on 95.0 % of the clean '
    'images, with nothing to compare it with.'
  )
  assert notes(run) == [nothing]
