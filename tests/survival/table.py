"""What the campaign of interruptions shows: table, totals, machine."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dhat_jax.runtime import documents, provenance
from tests.survival.run import ROOT, STAGES

_COLUMNS = (
  'interruption',
  'run',
  'moment',
  'stage',
  'step',
  'inside a write',
  'steps lost',
  'exit code',
  'equal',
)
_INSIDE = {True: 'yes', False: 'no', None: ''}


def _cells(row: Mapping[str, Any]) -> list[Any]:
  """Formats one interruption."""
  bad = row['wrong'] + row['differs']
  cells = {
    **row,
    'equal': '; '.join(bad) if bad else 'yes',
    'inside a write': _INSIDE[row.get('inside a write')],
  }
  return [str(cells.get(column, '')) for column in _COLUMNS]


def totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _machine() -> dict[str, Any]:
  """Asks another process: JAX would keep the accelerator from the runs."""
  code = (
    'import json; from dhat_jax.runtime import processes, provenance;'
    'processes.initialize(); print(json.dumps(provenance.machine()))'
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(process.stdout)


def document(
  rows: Sequence[Mapping[str, Any]],
  skipped: Sequence[str],
  seconds: float,
  *,
  command: str,
) -> dict[str, Any]:
  """Returns the document of a campaign.

  Args:
    rows: one for each interruption.
    skipped: what could not be tried, as sentences.
    seconds: that it took.
    command: how to get the same.
  """
  body = {
    'seconds': round(seconds, 1),
    'totals': totals(rows),
    'skipped': list(skipped),
    'rows': list(rows),
  }
  return documents.document(
    'survival', body, command=command, machine=_machine()
  )


def lines(document: Mapping[str, Any]) -> list[str]:
  """Returns a campaign's table as lines of Markdown, with its caption."""
  counts = document['totals']
  where = ', '.join(
    f'{count} in {place}'
    for place, count in counts['kills_by_stage'].items()
    if count
  )
  caption = (
    f'{counts["interruptions"]} interruptions, {counts["kills"]} of them kills '
    f'({where}; {counts["inside_a_write"]} inside the write of a checkpoint); '
    f'{counts["steps_lost"]} steps trained again; {counts["not_equal"]} rows '
    f'not as they should be; {document["seconds"]:.0f} s on '
    f'{provenance.describe(document["machine"])}.'
  )
  cells = map(_cells, document['rows'])
  return [
    documents.markdown_table(_COLUMNS, cells, left=len(_COLUMNS)),
    '',
    ' '.join([caption, *document['skipped']]),
  ]
