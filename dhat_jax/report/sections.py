"""The sections of a run's page, in order: titles, explanations, contents."""

from collections.abc import Callable
from typing import NamedTuple

from dhat_jax.report import contents, examples, plots
from dhat_jax.report.blocks import Block
from dhat_jax.report.contents import picture
from dhat_jax.report.read import Run

_EVALUATE_AGAIN = 'Evaluate again (--mode=evaluate) with --config.evaluation.'


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    text: what is seen, for readers who do not know the words.
    missing: the sentence if there is nothing to show.
    show: returns what is shown of a run, [] if there is nothing.
  """

  title: str
  text: str
  missing: str
  show: Callable[[Run], list[Block]]


SECTIONS = (
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
    contents.accuracy,
  ),
  Section(
    'Training',
    'The loss should fall and the accuracies rise, with a step where the '
    'learning rate drops. Attacked: under the attack that the training '
    'itself uses, which is a weak one. Held-out images are not trained on.',
    'There are no training records.',
    picture(plots.curves, 'Loss, accuracy, learning rate over the steps'),
  ),
  Section(
    'Accuracy against epsilon',
    'Epsilon is how far an attack may change each pixel. Accuracy has to '
    'fall towards 0 as it grows; where it does not, the attack is blind. The '
    'dotted line is the epsilon of this run.',
    f'Not measured. {_EVALUATE_AGAIN}sweep_epsilons_255.',
    picture(plots.sweep, 'Accuracy of each output over epsilon'),
  ),
  Section(
    'Classes',
    'Accuracy of the final output on each class, clean and under all attacks '
    'together.',
    'Not measured: there are no results yet.',
    picture(plots.per_class, 'Accuracy on every class'),
  ),
  Section(
    'Confusion',
    'What the final output takes the images of each class for: rows are the '
    'true classes, columns the predictions, the diagonal is right.',
    'Not measured: there are no results yet.',
    picture(plots.confusion, 'Counts of true class and prediction'),
  ),
  Section(
    'Loss against attack steps',
    'More steps should find a higher loss, and then no more: a line that '
    'still rises at its end says that the attack was stopped too early.',
    f'Not measured. {_EVALUATE_AGAIN}loss_steps.',
    picture(plots.loss_by_steps, 'Mean loss over the number of attack steps'),
  ),
  Section(
    'Audit',
    'Is the aggregated output robust, or does it only hide its gradients? '
    'Attacks that do not need its gradients should not find images that the '
    'attack with gradients missed. Accuracy of the aggregated output, in %.',
    f'Not made. {_EVALUATE_AGAIN}audit=True; only an aggregated output can be '
    'audited.',
    contents.audit,
  ),
  Section(
    'Images',
    'Test images, what the strongest attack changed (gray: nothing), and the '
    'result. Above: the true class; below: what each trained output, '
    'named by its first letters, sees, with a cross where that is wrong.',
    'No images were kept: evaluate again to keep some.',
    picture(examples.examples, 'Clean image, change and attacked image'),
  ),
  Section(
    'What the aggregator learned',
    "How far the aggregated output's logit (score) of a class moves with "
    'that of each head, on average over clean images. The mean of both heads '
    'would be .5 and .5 everywhere; large values make predictions that are '
    'surer, not better.',
    'There is no aggregator, or it has not been evaluated yet.',
    picture(plots.influence, 'Weight of each head for every class'),
  ),
  Section(
    'Where the heads disagree',
    'How many images each head gets right, and of those how many the '
    'aggregated output gets right; clean, and attacked against the '
    'aggregated output.',
    'There are no two heads, or they have not been evaluated yet.',
    contents.agreement,
  ),
  Section(
    'Cost',
    'Wall time of each part. Images per second is the median over the '
    'records; the time until the first step is compilation.',
    'Nothing was recorded.',
    contents.cost,
  ),
  Section(
    'Config and versions',
    'All that is needed to do it again.',
    'The workdir holds neither config.json nor environment.json.',
    contents.provenance,
  ),
)
