"""What stands at the top of a run's page."""

from dhat_jax.report import headline, sanity
from dhat_jax.report.blocks import Block, Grid, Notes, Sentence
from dhat_jax.report.read import Run
from dhat_jax.report.verdict import notes, verdict


def blocks(run: Run) -> list[Block]:
  """The verdict, the four numbers of every output, and what limits them."""
  failures = sanity.failures(run)
  distrusted = bool(run.red_flags or failures)
  text = verdict(run, failures)
  shown: list[Block] = [Sentence(text, is_flag=distrusted, is_verdict=True)]
  shown += [
    Sentence(failure, title='Sanity check failed.', is_flag=True)
    for failure in failures
  ]
  if run.outputs:
    shown.append(Grid(headline.table(run), caption=_caption(run)))
  best = headline.best_known(run)
  if best:
    title, text = best
    shown.append(Sentence(text, title=title))
  texts = [*notes(run, failures), *sanity.warnings(run)]
  return [*shown, Notes(texts)] if texts else shown


def _caption(run: Run) -> str:
  """What the four numbers are of."""
  results = run.results
  parts = ['Accuracy in %']
  if 'n_test' in results:
    parts.append(f' on {results["n_test"]} test images')
  if 'dataset' in results:
    parts.append(f' of {results["dataset"]}')
  if 'epsilon' in results:
    parts.append(f', epsilon {255 * results["epsilon"]:.4g}/255')
  if 'seed' in results:
    parts.append(f', seed {results["seed"]}')
  if run.is_dual:
    parts.append(f'. The output of DH-AT is “{run.final_output.label}”')
  return ''.join(parts) + '.'
