"""A workdir made by hand, in which every section has something to show."""

import json

import numpy as np

CLASSES = ('cat', 'dog_&_co')
PLACES, LABELS = [0, 3], [0, 1]
ACCURACY = {
  'main': {'clean': 0.75, 'pgd_2': 0.5},
  'second': {'clean': 0.75, 'pgd_2': 0.25},
  'mean': {'clean': 0.75, 'pgd_2': 0.5},
  'aggregated': {'clean': 1.0, 'pgd_2': 0.25},
}
# {output: (label, stage)}
OUTPUTS = {
  'main': ('main head', 'main_head'),
  'second': ('second head', 'second_head'),
  'mean': ('mean of the heads', None),
  'aggregated': ('aggregated', 'aggregator'),
}


def results_of(seed=0, shift=0.0):
  """results.json; `shift` is added to every accuracy."""
  outputs = tuple(ACCURACY)
  return {
    'dataset': 'pets',
    'n_test': 4,
    'seed': seed,
    'epsilon': 0.02,
    'outputs': [
      {'name': name, 'label': label, 'stage': stage}
      for name, (label, stage) in OUTPUTS.items()
    ],
    'accuracy': {
      output: {name: value + shift for name, value in row.items()}
      for output, row in ACCURACY.items()
    },
    'worst_case': dict.fromkeys(outputs, 0.25 + shift),
    'per_class': {
      output: {
        CLASSES[0]: {'images': 2, 'clean': 1.0, 'worst_case': 0.5},
        CLASSES[1]: {'images': 2, 'clean': 0.5, 'worst_case': None},
      }
      for output in outputs
    },
    'confusion': {
      output: {
        'clean': [[2, 0], [1, 1]],
        'attack': 'pgd_2',
        'attacked': [[1, 1], [2, 0]],
      }
      for output in outputs
    },
    'sweep': {key: {'0/255': 1.0, '8/255': 0.25} for key in outputs},
    'loss_by_steps': {
      key: {'0': [0.5, 1.0], '1': [0.9, 0.5], '20': [1.1, 0.25]}
      for key in outputs
    },
    'audit': {
      'attack': 'pgd_2',
      'white_box': {'accuracy': 0.25, 'margin_accuracy': 0.3},
      'attacks': {'transfer_main': {'accuracy': 0.2, 'missed': 1}},
      'worst_case': 0.2,
      'flags': [{'name': 'transfer_main', 'sentence': 'It found <more>.'}],
    },
    'heads': {
      'influence': {'main': [0.5, 0.6], 'second': [0.4, -0.1]},
      'agreement': {
        'clean': {
          'both': {'images': 2, 'aggregated_right': 2},
          'only_main': {'images': 1, 'aggregated_right': 1},
          'only_second': {'images': 0, 'aggregated_right': 0},
          'neither': {'images': 1, 'aggregated_right': 1},
        }
      },
    },
    'examples': {'places': PLACES, 'labels': LABELS},
    'seconds': {'main_head': 10.0, 'evaluation': 2.5},
  }


def with_third():
  """results.json of version 2, with an output and an attack of a user's own."""
  content = results_of()
  content |= {
    'schema_version': 2,
    'kind': 'run',
    'outputs': [
      {'name': 'main', 'label': 'main head', 'stage': 'main_head'},
      {'name': 'second', 'label': 'second head', 'stage': 'second_head'},
      {'name': 'third', 'label': 'third & last', 'stage': 'third_head'},
      {'name': 'mean', 'label': 'mean of the heads', 'stage': None},
      {'name': 'aggregated', 'label': 'aggregated one', 'stage': 'aggregator'},
    ],
  }
  for rows in content.values():
    if isinstance(rows, dict) and 'aggregated' in rows:
      rows['third'] = rows['aggregated']
  content['accuracy'] = {
    name: {**row, 'my_attack': 0.125}
    for name, row in content['accuracy'].items()
  }
  return content


def records():
  """metrics.jsonl of two stages."""
  lines = []
  for stage in ('main_head', 'aggregator'):
    for step in (1, 2, 3):
      lines.append(
        {
          'stage': stage,
          'step': step,
          'train/loss': 1 / step,
          'train/clean_accuracy': step / 4,
          'train/robust_accuracy': step / 8,
          'train/learning_rate': 0.1,
          'train/images_per_second': 100.0 * step,
        }
      )
    lines[-3]['train/compile_seconds'] = 4.0
    lines.append(
      {
        'stage': stage,
        'step': 3,
        'validation/clean_accuracy': 0.7,
        'validation/robust_accuracy': 0.4,
      }
    )
  return lines


def make(directory, seed=0, shift=0.0, results=None, channels=3):
  """Writes a whole workdir; returns its path as text.

  Args:
    directory: its path.
    seed: of the run.
    shift: added to every accuracy.
    results: results.json; default: `results_of` with the shift.
    channels: of the images.
  """
  directory.mkdir(parents=True, exist_ok=True)
  if results is None:
    results = results_of(seed, shift)

  def write(name, value):
    (directory / name).write_text(json.dumps(value))

  write('results.json', results)
  write('config.json', {'seed': seed, 'model': {'backbone': 'wrn10_1'}})
  write('environment.json', {'versions': {'jax': '1.2'}, 'git_commit': 'abc'})
  lines = [json.dumps(record) + '\n' for record in records()]
  (directory / 'metrics.jsonl').write_text(''.join(lines))
  rng = np.random.default_rng(0)
  clean = rng.uniform(size=(2, 6, 6, channels)).astype(np.float16)
  folder = directory / 'evaluation' / 'aggregated'
  folder.mkdir(parents=True, exist_ok=True)
  predictions = {
    f'{output}_predictions': np.array([0, 1, 1, 0])
    for output in results['accuracy']
  }
  for attack, images in (('clean', clean), ('pgd_2', clean + np.float16(0.02))):
    np.savez(folder / f'{attack}.npz', examples=images, **predictions)
  return str(directory)


# Four images: robust, wrong before, and broken in two ways.
BROKEN = {
  'labels': np.array([0, 0, 1, 1], np.int32),
  'clean_predictions': np.array([0, 1, 1, 1], np.int32),
  'predictions': np.array([0, 1, 0, 0], np.int32),
  'broken_by': np.array(['', 'clean', 'apgd-t', 'square']),
  'broken_in': np.array([-1, -1, 2, 5], np.int32),
  'targets': np.array([-1, -1, 0, -1], np.int32),
  'changes': np.array([0, 0, 0.02, 0.019], np.float32),
  'clean_margins': np.array([1.5, -0.25, 0.5, 2], np.float32),
  'margins': np.array([1.5, -0.25, -0.125, -0.0625], np.float32),
}


def make_attacked(directory, best=None, **arrays):
  """Writes a workdir of few figures, with AutoAttack on the aggregated output.

  Args:
    directory: its path.
    best: `best_known` of the aggregated output; None: none.
    **arrays: others in place of `BROKEN`'s.

  Returns:
    Its path as text.
  """
  results = results_of()
  for key in ('sweep', 'loss_by_steps', 'confusion', 'heads', 'examples'):
    del results[key]
  table = {**BROKEN, **arrays}
  robust = table['broken_by'] == ''
  count = len(robust)
  results['accuracy']['aggregated']['autoattack'] = float(robust.mean())
  results['autoattack'] = {
    'aggregated': {
      'autoattack': {
        'images': count,
        'accuracy_after': {'clean': 0.75, 'apgd-t': 0.5, 'square': 0.25},
        'broken_by': {'clean': 1, 'apgd-t': 1, 'square': 1},
      }
    }
  }
  if best:
    results['best_known'] = {'aggregated': best}
  path = make(directory, results=results)
  pictures = np.random.default_rng(1).uniform(size=(2, 2, 6, 6, 3))
  np.savez(
    directory / 'evaluation' / 'aggregated' / 'autoattack.npz',
    robust=robust,
    picture_places=np.array([2, 3], np.int32),
    pictures=pictures.astype(np.float16),
    **{f'table/{name}': values for name, values in table.items()},
  )
  return path
