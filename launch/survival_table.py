"""What `survival.py` shows of its campaign: table, totals, machine."""

import json
import subprocess
import sys

import survival_run
from survival_run import STAGES

_COLUMNS = (
  *('run', 'moment', 'stage', 'step', 'inside a write', 'steps lost'),
  *('exit code', 'equal'),
)


def table(rows: list[dict]) -> str:
  """Formats what happened."""
  lines = ['| ' + ' | '.join(('interruption', *_COLUMNS)) + ' |']
  lines.append('|---' * (1 + len(_COLUMNS)) + '|')
  for row in rows:
    bad = row['wrong'] + row['differs']
    cells = {
      **row,
      'equal': '; '.join(bad) if bad else 'yes',
      'inside a write': {True: 'yes', False: 'no'}.get(
        row.get('inside a write'), ''
      ),
    }
    shown = (str(cells.get(key, '')) for key in ('interruption', *_COLUMNS))
    lines.append('| ' + ' | '.join(shown) + ' |')
  return '\n'.join(lines)


def totals(rows: list[dict]) -> dict:
  """Counts what happened."""
  killed = [row for row in rows if row['interruption'] == 'kill -9']
  return {
    'interruptions': len(rows),
    'kills': len(killed),
    'kills_by_stage': {
      place: sum(row['stage'] == place for row in killed)
      for place in ('start-up', *STAGES, 'evaluation')
    },
    'inside_a_write': sum(row['inside a write'] for row in killed),
    'steps_lost': sum(row['steps lost'] for row in killed),
    'not_equal': sum(bool(row['wrong'] + row['differs']) for row in rows),
  }


def machine() -> dict:
  """Asks another process: JAX would keep the accelerator from the runs."""
  code = (
    'import json; from dhat_jax.runtime import devices; devices.initialize();'
    'from dhat_jax.runtime import provenance;'
    'print(json.dumps(provenance.machine()))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=survival_run.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def document(rows: list[dict], skipped: list[str], seconds: float) -> dict:
  """Returns what the campaign found, as JSON can hold it."""
  counts = totals(rows)
  where = ', '.join(
    f'{count} in {place}'
    for place, count in counts['kills_by_stage'].items()
    if count
  )
  about = machine()
  sentence = (
    f'{counts["interruptions"]} interruptions, {counts["kills"]} of them kills '
    f'({where}; {counts["inside_a_write"]} inside the write of a checkpoint); '
    f'{counts["steps_lost"]} steps trained again; {counts["not_equal"]} rows '
    f'not as they should be; {seconds:.0f} s on {about["cores"]} cores of '
    f'{about["processor"]}, jax {about["versions"]["jax"]}.'
  )
  return {
    'seconds': round(seconds, 1),
    'totals': counts,
    'skipped': skipped,
    'table': [table(rows), '', ' '.join([sentence, *skipped])],
    'rows': rows,
    'machine': about,
  }
