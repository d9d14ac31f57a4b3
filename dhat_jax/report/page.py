"""The page: every section a heading, a plain sentence, then what was found."""

import base64
import functools
import html
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dhat_jax.report import plots, tables
from dhat_jax.report.read import Run
from dhat_jax.report.tables import Table, percent

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; }
h3 { margin-top: 2.2rem; } p { max-width: 42rem; }
.wide { overflow-x: auto; } /* figures and tables keep their size and scroll */
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd;
  text-align: left; }
td.number, th.number { text-align: right; white-space: nowrap; }
.summary { border-left: 4px solid #0072B2; padding: .2rem 1rem; }
.flag { border-left: 4px solid #D55E00; padding: .2rem 1rem; }
.missing { color: #555; font-style: italic; }
pre { font-size: .8rem; }
"""


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    text: what is seen, for readers who do not know the words.
    missing: the sentence if there is nothing to show.
    body: run -> HTML, '' if there is nothing to show.
  """

  title: str
  text: str
  missing: str
  body: Callable[[Run], str]


def escape(text: object) -> str:
  """Escapes text for HTML."""
  return html.escape(str(text))


def table_html(table: Table) -> str:
  """Formats a table, in a container that scrolls on narrow screens."""

  kinds = [
    ' class="number"' if right else '' for right in tables.alignments(table)
  ]

  def row(cells, tag):
    texts = [
      f'<{tag}{kind}>{escape(cell)}</{tag}>'
      for cell, kind in zip(cells, kinds, strict=True)
    ]
    return f'<tr>{"".join(texts)}</tr>'

  rows = [row(table.header, 'th'), *(row(r, 'td') for r in table.rows)]
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _keep(name: str, table: Table, files: dict[str, bytes]) -> str:
  """Keeps a table in `files`, as CSV too; returns it as HTML, to copy."""
  texts = {
    'md': tables.to_markdown(table),
    'tex': tables.to_latex(table),
    'csv': tables.to_csv(table),
  }
  for ending, text in texts.items():
    files[f'{name}.{ending}'] = text.encode()
  copies = ''.join(
    f'<details><summary>As {title}</summary><pre class="wide">'
    f'{escape(texts[ending])}</pre></details>'
    for title, ending in (('Markdown', 'md'), ('LaTeX', 'tex'))
  )
  return table_html(table) + copies


def png(figure: Figure) -> bytes:
  """Draws a figure as PNG, and closes it."""
  data = io.BytesIO()
  figure.savefig(data, format='png')
  plt.close(figure)
  return data.getvalue()


def _picture(name: str, alt: str, files: dict[str, bytes]):
  """Returns run -> an inlined figure, which is kept in `files` too."""

  def body(run: Run) -> str:
    figure = plots.draw(name, run)
    if figure is None:
      return ''
    data = files[f'{run.name}_{name}.png'] = png(figure)
    source = base64.b64encode(data).decode()
    return (
      f'<div class="wide"><img alt="{escape(alt)}" '
      f'src="data:image/png;base64,{source}"></div>'
    )

  return body


def summary(run: Run) -> str:
  """Says in a sentence or two what came out."""
  if not run.outputs:
    return 'This run has not been evaluated yet.'
  texts = []
  for output in dict.fromkeys((run.final_output, 'main')):
    row = run.results['accuracy'][output]
    attacks = {name: row[name] for name in row if name != 'clean'}
    text = f'The {output} output is right on '
    parts = []
    if 'clean' in row:
      parts.append(f'{percent(row["clean"])} % of the clean images')
    if attacks:
      name = min(attacks, key=attacks.get)
      parts.append(f'{percent(attacks[name])} % under {name}, its worst attack')
    texts.append(text + ' and on '.join(parts) + '.')
  if 'audit' in run.results:
    count = len(run.results['audit']['flags'])
    texts.append(
      f'The audit raised {count} red flag{"s" if count > 1 else ""}: the '
      'robustness of the aggregated output is not to be believed.'
      if count
      else 'The audit raised no red flag.'
    )
  elif 'aggregated' in run.outputs:
    texts.append('The aggregated output was not audited.')
  return ' '.join(texts)


def _accuracy(files: dict[str, bytes]):
  """Returns run -> its accuracies, which are kept in `files` too."""

  def body(run: Run) -> str:
    if not run.outputs:
      return ''
    table = tables.with_differences(run)
    return _keep(f'{run.name}_accuracy', table, files)

  return body


def _audit(run: Run) -> str:
  found = run.results.get('audit')
  if not found:
    return ''
  white = found['white_box']
  rows = [
    [f'{found["attack"]}, with the gradients', percent(white['accuracy']), ''],
    ['the same on the margin', percent(white['margin_accuracy']), ''],
    *(
      [name, percent(row['accuracy']), str(row['missed'])]
      for name, row in found['attacks'].items()
    ),
    ['all of these together', percent(found['worst_case']), ''],
  ]
  flags = ''.join(
    f'<p class="flag"><b>Red flag: {escape(flag["name"])}.</b> '
    f'{escape(flag["sentence"])}</p>'
    for flag in found['flags']
  )
  header = ['attack', 'accuracy, %', 'broken although the first failed']
  verdict = flags or '<p class="summary">No red flag.</p>'
  return verdict + table_html(Table(header, rows))


def _agreement(run: Run) -> str:
  found = run.results.get('heads', {}).get('agreement')
  if not found:
    return ''
  labels = {
    'both': 'both heads right',
    'only_main': 'only the main head right',
    'only_second': 'only the second head right',
    'neither': 'no head right',
  }
  rows = [
    [attack, labels[group], str(row['images']), str(row['aggregated_right'])]
    for attack, groups in found.items()
    for group, row in groups.items()
  ]
  return table_html(
    Table(['images', 'heads', 'how many', 'aggregated right'], rows)
  )


def _cost(run: Run) -> str:
  rows = []
  seconds = run.results.get('seconds', {})
  for stage in dict.fromkeys([*run.stages, *seconds]):
    _, speed = run.series(stage, 'train/images_per_second')
    _, compiling = run.series(stage, 'train/compile_seconds')
    rows.append(
      [
        stage,
        f'{seconds[stage]:.0f}' if stage in seconds else '',
        f'{sorted(speed)[len(speed) // 2]:.0f}' if speed else '',
        f'{sum(compiling):.1f}' if compiling else '',
      ]
    )
  header = ['part', 'seconds', 'images per second', 'seconds until first step']
  return table_html(Table(header, rows)) if rows else ''


def _flat(value: object, prefix: str = '') -> list[list[str]]:
  if isinstance(value, dict):
    return [
      row
      for key, item in value.items()
      for row in _flat(item, f'{prefix}.{key}' if prefix else str(key))
    ]
  return [[prefix, str(value)]]


def _provenance(run: Run) -> str:
  texts = []
  for title, values in (
    ('What it ran on', run.environment),
    ('Config', run.config),
  ):
    if values:
      table = table_html(Table(['key', 'value'], _flat(values)))
      texts.append(f'<details><summary>{title}</summary>{table}</details>')
  return ''.join(texts)


def sections(files: dict[str, bytes]) -> list[Section]:
  """Returns the sections; their figures are kept in `files` when drawn."""
  ask = 'Evaluate again (--mode=evaluate) with --config.evaluation.'

  def picture(name, alt):
    return _picture(name, alt, files)

  return [
    Section(
      'Accuracy',
      'How many of the test images each output gets right, in %: as they are '
      '(clean), and after each attack has changed every pixel a little to make '
      'that output fail. In brackets: points above or below the main head, '
      'that is, what the second head and the aggregator add. The attacks: fgsm '
      'takes one step along the gradient, pgd_N takes N, cw_N the same but on '
      'the margin between the right class and the next; autoattack is a set of '
      'strong ones. Worst case: right whatever attack is used.',
      'There are no results yet: the run has not come to its evaluation.',
      _accuracy(files),
    ),
    Section(
      'Training',
      'The loss should fall and the accuracies rise, with a step where the '
      'learning rate drops. Attacked: under the attack that the training '
      'itself uses, which is a weak one. Held-out images are not trained on.',
      'There are no training records.',
      picture('curves', 'Loss, accuracy, learning rate over the steps'),
    ),
    Section(
      'Accuracy against epsilon',
      'Epsilon is how far an attack may change each pixel. Accuracy has to '
      'fall towards 0 as it grows; where it does not, the attack is blind. The '
      'dotted line is the epsilon of this run.',
      f'Not measured. {ask}sweep_epsilons_255.',
      picture('sweep', 'Accuracy of each output over epsilon'),
    ),
    Section(
      'Classes',
      'Accuracy of the final output on each class, clean and under all attacks '
      'together.',
      'Not measured: there are no results yet.',
      picture('per_class', 'Accuracy on every class'),
    ),
    Section(
      'Confusion',
      'What the final output takes the images of each class for: rows are the '
      'true classes, columns the predictions, the diagonal is right.',
      'Not measured: there are no results yet.',
      picture('confusion', 'Counts of true class and prediction'),
    ),
    Section(
      'Loss against attack steps',
      'More steps should find a higher loss, and then no more: a line that '
      'still rises at its end says that the attack was stopped too early.',
      f'Not measured. {ask}loss_steps.',
      picture('loss_by_steps', 'Mean loss over the number of attack steps'),
    ),
    Section(
      'Audit',
      'Is the aggregated output robust, or does it only hide its gradients? '
      'Attacks that do not need its gradients should not find images that the '
      'attack with gradients missed. Accuracy of the aggregated output, in %.',
      f'Not made. {ask}audit=True; only an aggregated output can be audited.',
      _audit,
    ),
    Section(
      'Images',
      'Test images, what the strongest attack changed (gray: nothing), and the '
      'result. Above: the true class; below: what the main, second and '
      'aggregated output (m, s, a) see, with a cross where that is wrong.',
      'No images were kept: evaluate again to keep some.',
      picture('examples', 'Clean image, change and attacked image'),
    ),
    Section(
      'What the aggregator learned',
      "How far the aggregated output's logit (score) of a class moves with "
      'that of each head, on average over clean images. The mean of both heads '
      'would be .5 and .5 everywhere; large values make predictions that are '
      'surer, not better.',
      'There is no aggregator, or it has not been evaluated yet.',
      picture('influence', 'Weight of each head for every class'),
    ),
    Section(
      'Where the heads disagree',
      'How many images each head gets right, and of those how many the '
      'aggregated output gets right; clean, and attacked against the '
      'aggregated output.',
      'There are no two heads, or they have not been evaluated yet.',
      _agreement,
    ),
    Section(
      'Cost',
      'Wall time of each part. Images per second is the median over the '
      'records; the time until the first step is compilation.',
      'Nothing was recorded.',
      _cost,
    ),
    Section(
      'Config and versions',
      'All that is needed to do it again.',
      'The workdir holds neither config.json nor environment.json.',
      _provenance,
    ),
  ]


def _or_say(function: Callable[[], str]) -> str:
  """Calls what makes a part of the page; damaged files become a sentence."""
  try:
    return function()
  except Exception as error:
    reason = escape(f'{type(error).__name__}: {error}')
    return (
      '<p class="flag">This cannot be shown: the files of the run are damaged '
      f'or of another version ({reason}).</p>'
    )


def _chapter(run: Run, number: int, parts: Sequence[Section]) -> str:
  texts = [
    f'<h2 id="run{number}">{escape(run.name)}</h2>',
    _or_say(lambda: f'<p class="summary">{escape(summary(run))}</p>'),
    *(f'<p class="flag">{escape(text)}</p>' for text in run.problems),
  ]
  for place, part in enumerate(parts):
    body = _or_say(functools.partial(part.body, run))
    text = (
      f'<p>{escape(part.text)}</p>{body}'
      if body
      else f'<p class="missing">{escape(part.missing)}</p>'
    )
    texts.append(
      f'<h3 id="run{number}s{place}">{escape(part.title)}</h3>{text}'
    )
  return '\n'.join(texts)


def _contents(runs: Sequence[Run], parts: Sequence[Section]) -> str:
  items = []
  for number, run in enumerate(runs):
    links = ', '.join(
      f'<a href="#run{number}s{place}">{escape(part.title)}</a>'
      for place, part in enumerate(parts)
    )
    items.append(
      f'<li><a href="#run{number}">{escape(run.name)}</a>: {links}</li>'
    )
  return f'<ul>{"".join(items)}</ul>'


def _comparison(runs: Sequence[Run], files: dict[str, bytes]) -> str:
  evaluated = [run for run in runs if run.outputs]
  if not evaluated:
    return '<p class="missing">None of the runs has results yet.</p>'
  return (
    '<p>Accuracy in %. Runs that differ in their seed alone share a row: the '
    'mean, and ± the standard deviation over the seeds.</p>'
    + _keep('comparison', tables.comparison(evaluated), files)
  )


def make(runs: Sequence[Run], files: dict[str, bytes]) -> str:
  """Returns the page; what it shows is kept in `files` as well.

  Args:
    runs: at least one.
    files: gets {file name: content}.
  """
  parts = sections(files)
  compared = _or_say(lambda: _comparison(runs, files))
  comparison = f'<h2>Side by side</h2>{compared}' if len(runs) > 1 else ''
  chapters = '\n'.join(
    _chapter(run, number, parts) for number, run in enumerate(runs)
  )
  title = 'Dual Head Adversarial Training: ' + ', '.join(r.name for r in runs)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
    f'<h1>{escape(title)}</h1>{_contents(runs, parts)}{comparison}\n{chapters}'
    '</body></html>\n'
  )
