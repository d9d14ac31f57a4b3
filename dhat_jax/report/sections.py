"""The sections of a run's page, in order: titles, explanations, contents."""

from collections.abc import Callable
from typing import NamedTuple

from dhat_jax.report import commands, contents, examples, plots
from dhat_jax.report.blocks import Block
from dhat_jax.report.contents import picture
from dhat_jax.report.read import Run


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    look: what to look at.
    text: what is shown, for readers who do not know the words.
    show: returns what is shown of a run, [] if there is nothing.
    command: returns the command that measures it, where one does.
    needs_aggregator: whether only a run with an aggregator can have it.
  """

  title: str
  look: str
  text: str
  show: Callable[[Run], list[Block]]
  command: Callable[[Run], str] | None = None
  needs_aggregator: bool = False


class Missing(NamedTuple):
  """A section that has nothing to show.

  Attributes:
    title: its heading.
    reason: why; '' where the command says it all.
    command: what measures it, '' for none.
  """

  title: str
  reason: str = ''
  command: str = ''


SECTIONS = (
  Section(
    'Accuracy',
    'start with the worst case: an image counts there only if every attack '
    'on it fails. Then compare the final output with the first.',
    'Clean images are not changed. Each attack changes every pixel a little, '
    'so that the output it targets fails. fgsm takes one step '
    'along the gradient and pgd_N takes N; cw_N does so on the margin between '
    'the right class and the next. autoattack is a set of strong attacks.',
    contents.accuracy,
    commands.evaluate,
  ),
  Section(
    'Training',
    'the loss should fall and the accuracies should rise, with a jump where '
    'the learning rate drops. A widening gap between training and held-out '
    'accuracy is overfitting.',
    'Attacked means under the attack of the training, which is a weak one. '
    'Held-out images are not trained on.',
    picture(
      plots.curves,
      'Loss, accuracy and learning rate over the steps of each stage',
    ),
  ),
  Section(
    'Accuracy against epsilon',
    'each line should fall towards 0 as epsilon grows. Where one does not, '
    'the attack is blind.',
    'Epsilon is how far an attack may change each pixel. The dotted line is '
    'the epsilon of this run.',
    picture(plots.sweep, 'Accuracy of each output over epsilon'),
    commands.sweep,
  ),
  Section(
    'Classes',
    'a class that falls far below the others under attack.',
    'Accuracy of the final output on each class, clean and under all attacks '
    'together.',
    picture(
      plots.per_class,
      'Clean and worst-case accuracy of the final output on every class',
    ),
    commands.evaluate,
  ),
  Section(
    'Confusion',
    'bright cells off the diagonal are pairs of classes that the network '
    'confuses.',
    'Rows are the true classes, columns the predictions of the final output; '
    'the diagonal is right.',
    picture(
      plots.confusion,
      'Counts of true class and prediction, clean and attacked',
    ),
    commands.evaluate,
  ),
  Section(
    'Loss against attack steps',
    'each line should rise and then stay level. One that still rises at its '
    'end says that the attack stopped too early.',
    'The mean loss of the attacked images after so many steps.',
    picture(plots.loss_by_steps, 'Mean loss over the number of attack steps'),
    commands.loss_by_steps,
  ),
  Section(
    'AutoAttack',
    'which attack breaks the most, and how far the margin of the images falls. '
    'Robust images with a small margin before are the next to break.',
    'The attacks run one after the other, on what the others left. A margin is '
    "the right class's logit (score) less the largest other one. The pictures "
    'are the first image that each attack broke; below is the predicted class. '
    'Where says which restart, target class or piece of the queries broke an '
    'image.',
    contents.autoattack,
    commands.autoattack,
  ),
  Section(
    'Audit',
    'the red flags, and how many images the attacks with gradients missed: '
    'few. Transfer is compared with the first attack, MORA, Square and the '
    'surrogate with all attacks with gradients together.',
    'The audit asks whether the final output is robust or only hides its '
    'gradients.',
    contents.audit,
    commands.audit,
    needs_aggregator=True,
  ),
  Section(
    'Images',
    'how much of the change a person notices, and which predictions have a '
    'cross: they are wrong.',
    'From top to bottom: test images, what the strongest attack changed (gray: '
    'nothing), and the result. The true class is above. Below is what each '
    'trained output predicts, named by its first letters.',
    picture(
      examples.examples,
      'Clean images, changes and attacked images with their predictions',
    ),
    commands.evaluate,
  ),
  Section(
    'What the aggregator learned',
    "compare the bars with .5, each head's weight in their mean. Large values "
    'make predictions surer, not better.',
    "How far the final output's logit (score) of a class moves with that of "
    'each head, on average over clean images.',
    picture(
      plots.influence,
      "Weight of each head's logit in the final one, for every class",
    ),
    commands.evaluate,
    needs_aggregator=True,
  ),
  Section(
    'Where the heads disagree',
    'the rows in which one head alone is right. There the aggregator has to '
    'choose, and the last column says how often it chose well.',
    'How many images each head gets right, and of those how many the final '
    'output gets right. The attack targets the final output.',
    contents.agreement,
    commands.evaluate,
    needs_aggregator=True,
  ),
  Section(
    'Cost',
    'the part that takes longest, and how much of it is compilation.',
    'Wall time of each part. Images per second is the median over the '
    'records; the time until the first step is mostly compilation.',
    contents.cost,
  ),
  Section(
    'Config and versions',
    'the seed, the git commit and the config, which repeat the run.',
    'The machine, the package versions, and all keys of the config.',
    contents.provenance,
  ),
)


def missing(run: Run, section: Section) -> Missing:
  """Returns the line in place of a section that has nothing to show."""
  if section.command is None:
    return Missing(section.title, 'nothing is recorded.')
  if section.needs_aggregator and run.outputs and not run.is_dual:
    return Missing(section.title, 'the results hold no aggregator.')
  if not run.outputs:
    return Missing(section.title, 'the run is not evaluated yet.')
  return Missing(section.title, command=section.command(run))


def not_run(run: Run) -> list[Missing]:
  """Returns the lines of what is no section, but was not measured either."""
  if not run.outputs:
    return [Missing('Evaluation', command=commands.train(run))]
  return []
