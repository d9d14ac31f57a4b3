"""The experiments' Markdown tables, from made-up rows."""

import numpy as np

from experiments import packing, tables


def row(variant, seed, clean, robust, *, output='main', flags=None):
  images = np.arange(10) < robust / 10
  return {
    'group': 'trades',
    'variant': variant,
    'seed': seed,
    'run': f'{seed}/dual',
    'output': output,
    'accuracy': {
      'clean': clean / 100,
      'autoattack(n_iter=2,images=5)': robust / 100,
    },
    'worst_case': robust / 100,
    'images': {
      'clean': packing.pack(np.arange(10) < clean / 10),
      'autoattack(n_iter=2,images=5)': packing.pack(images),
    },
    'red_flags': flags,
    'parameters': 1234,
    'training_gmacs': 10.0 if variant == 'single head' else 25.0,
    'n_test': 10,
    'epsilon': 0.2,
  }


def record(rows):
  return {
    'data': 'some images',
    'missing': 2,
    'machine': {
      'device': 'cpu',
      'cores': 2,
      'processor': 'a CPU',
      'versions': {'jax': '1.2'},
    },
    'rows': rows,
  }


def cells(table):
  """The cells of a Markdown table, without the line below its headers."""
  headers, _, *rows = (
    [cell.strip() for cell in line[1:-1].split('|')]
    for line in table.split('\n')
  )
  return [headers, *rows]


TWO_SEEDS = [
  row('single head', 0, 90, 50),
  row('DH-AT, pairwise', 0, 91, 53, flags=['square']),
  row('DH-AT, pairwise', 1, 93, 52, flags=[]),
  row('single head', 1, 92, 50),
]


def test_accuracies_of_two_seeds():
  document = record(TWO_SEEDS)
  lines = tables.table(document, 'accuracies')
  headers, single, dual = cells(lines[0])
  assert headers[5] == 'AutoAttack (short)'
  deviation = '1.4'  # of two values that differ by 2: sqrt(2)
  assert single == [
    'trades',
    'single head',
    '1,234',
    '1.00',
    f'91.0 ± {deviation}',
    '50.0 ± 0.0',
    '50.0 ± 0.0',
    '',
    '2',
  ]
  assert dual[3] == '2.50'
  assert dual[-3:] == ['52.5 ± 0.7', '1 of 2', '2']
  assert '2 rows are not made yet' in lines[-1]
  assert '`autoattack(n_iter=2,images=5)`' in lines[-1]


def test_small_table():
  headers, single, dual = cells(tables.table(record(TWO_SEEDS), 'small')[0])
  assert headers[0] == 'variant'
  assert single == [
    *('single head', '91.0 ± 1.4', '50.0 ± 0.0', '50.0 ± 0.0', '2')
  ]
  assert len(headers) == len(dual)
  _, single, dual = cells(tables.table(record(TWO_SEEDS), 'card')[0])
  assert single == [*('single head', '90.0', '50.0', '50.0', '1')]
  assert dual[0] == 'DH-AT, pairwise'


def test_differences_of_two_seeds():
  document = record(TWO_SEEDS)
  lines = tables.table(document, 'differences')
  # Clean: twice 1. Robust: 3 and 2; t of 1 degree of freedom 12.7062.
  reach = 12.7062 * 0.5
  robust = f'+2.5 [{2.5 - reach:+.1f}, {2.5 + reach:+.1f}]'
  assert cells(lines[0])[1:] == [
    [
      'trades',
      'DH-AT, pairwise − single head',
      '**+1.0 [+1.0, +1.0]**',
      robust,
      robust,
    ]
  ]
  assert 'as 1 of 3 do (by chance alone about 0 would)' in lines[-1]
  assert tables.table(document, 'summary') == lines


def test_an_attack_that_a_row_lacks_is_left_blank():
  document = record(TWO_SEEDS)
  document['rows'] = [
    {**entry, 'accuracy': {'clean': entry['accuracy']['clean']}}
    if entry['variant'] == 'single head'
    else entry
    for entry in document['rows']
  ]
  _, single, dual = cells(tables.table(document, 'accuracies')[0])
  assert single[5] == ''
  assert dual[5] != ''
  (difference,) = cells(tables.table(document, 'differences')[0])[1:]
  assert difference[3] == ''
  assert difference[2] != ''


def test_table_of_one_seed_compares_images():
  lines = tables.table(
    record([row('single head', 0, 90, 50), row('DH-AT, mean', 0, 90, 60)]),
    'differences',
  )
  reach = 100 * 1.95996 * 0.3 / np.sqrt(10)
  assert cells(lines[0])[1:] == [
    [
      'trades',
      'DH-AT, mean − single head',
      '+0.0 [+0.0, +0.0]',
      f'+10.0 [{10 - reach:+.1f}, {10 + reach:+.1f}]',
      '+10.0',
    ]
  ]
  assert 'nothing is known of other seeds' in lines[-1]
  # The worst case is not known by image.
  assert 'as 0 of 2 do' in lines[-1]


def test_two_seeds_by_image():
  """An image counts with its mean over the seeds."""
  lines = tables.table(record(TWO_SEEDS), 'images')
  (difference,) = cells(lines[0])[1:]
  # Clean: 10 and 10 images against 9 and 10: half an image of 10.
  reach = 100 * 1.95996 * 0.15 / np.sqrt(10)
  assert difference[2] == f'+5.0 [{5 - reach:+.1f}, {5 + reach:+.1f}]'
  # Robust: 6 images with seed 0 and 1 against 5 and 5: one image of 10.
  reach = 100 * 1.95996 * 0.3 / np.sqrt(10)
  assert difference[3] == f'+10.0 [{10 - reach:+.1f}, {10 + reach:+.1f}]'
  assert difference[4] == '+2.5'  # the worst case is not known by image
  assert 'nothing is known of other seeds' in lines[-1]


def test_rows_of_different_seeds():
  document = record([*TWO_SEEDS, row('single head, wide', 0, 95, 60)])
  lines = tables.table(document, 'differences')
  labels = [difference[1] for difference in cells(lines[0])[1:]]
  assert labels == [
    'DH-AT, pairwise − single head (2 seeds)',
    'DH-AT, pairwise − single head, wide (1 seed)',
    'single head, wide − single head (1 seed)',
  ]
  assert 'Student' in lines[-1]
  assert 'Of one seed: for other images' in lines[-1]


def test_fewer_images_are_no_smaller_budget():
  names = 'autoattack', 'autoattack(images=5)', 'autoattack(n_iter=2,images=5)'
  assert [tables.title(name) for name in names] == [
    *('AutoAttack', 'AutoAttack', 'AutoAttack (short)')
  ]


def test_pack():
  flags = np.random.default_rng(0).random(37) < 0.5
  np.testing.assert_array_equal(packing.unpack(packing.pack(flags)), flags)
  assert packing.pack(np.array([True, False, True])) == '3:a0'
