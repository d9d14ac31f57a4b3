from dhat_jax.evaluation.summary import summary, table

RESULTS = {
  'dataset': 'digits',
  'n_test': 360,
  'epsilon': 8 / 255,
  'accuracy': {'main': {'clean': 0.9, 'pgd_20': 0.5}},
  'worst_case': {'main': 0.45},
}


def test_table_marks_what_was_not_run():
  text = table({'main': {'clean': 1.0}, 'mean': {'pgd_20': 0.256}})
  head, main, mean = text.split('\n')
  assert head.split() == ['clean', 'pgd_20']
  assert main.split() == ['main', '100.00', '-']
  assert mean.split() == ['mean', '-', '25.60']


def test_summary_has_the_worst_case():
  lines = summary(RESULTS).split('\n')
  assert lines[1].endswith(
    '360 test images of digits, epsilon 0.0314 (8.0/255)'
  )
  assert lines[2].split() == ['clean', 'pgd_20', 'worst', 'case']
  assert lines[3].split() == ['main', '90.00', '50.00', '45.00']
  assert len(lines) == 4


def test_a_worst_case_of_fewer_images_says_so():
  known = {**RESULTS, 'worst_case_images': {'main': 50}}
  line = 'worst case of main: of the first 50 images, which every attack saw'
  assert line in summary(known).split('\n')
  assert 'of the first' not in summary(
    {**RESULTS, 'worst_case_images': {'main': 360}}
  )


def test_summary_shows_the_audit_and_the_twin():
  text = summary({**RESULTS, 'audit': {'flags': []}})
  assert 'audit of the aggregated output: no red flag' in text
  flag = {'name': 'a', 'sentence': 'b.'}
  text = summary(
    {
      **RESULTS,
      'audit': {'flags': [flag]},
      'natural': {'accuracy': {'main': {'clean': 0.95}}},
    }
  )
  assert '1 RED FLAGS\n  RED FLAG a: b.' in text
  assert text.split('\n')[-1].split() == ['main', '95.00']


def test_summary_shows_the_best_known_accuracy_where_it_is_lower():
  best = {
    'accuracy': 0.4,
    'sentence': 'square breaks 1 image that AutoAttack left robust.',
    'made_the_difference': [{'name': 'square'}],
  }
  text = summary({**RESULTS, 'best_known': {'main': best}})
  assert text.split('\n')[-1] == (
    'best known accuracy of main: 40.00. square breaks 1 image that AutoAttack '
    'left robust.'
  )
  best['made_the_difference'] = []
  assert summary({**RESULTS, 'best_known': {'main': best}}) == summary(RESULTS)
