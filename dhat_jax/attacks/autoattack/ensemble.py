"""AutoAttack: an ensemble of attacks without parameters to tune (ICML 2020).

It is a worst case per image: every attack sees only the images that all attacks
before it left robust. `docs/autoattack.md` compares it with the reference.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np

from dhat_jax.arguments import integer
from dhat_jax.attacks import arguments, balls
from dhat_jax.attacks import logits as networks
from dhat_jax.attacks import randomized as noise
from dhat_jax.attacks.autoattack import checks, image_table, targets
from dhat_jax.attacks.autoattack.budget import Budget, make_budget
from dhat_jax.attacks.autoattack.evaluation import Evaluation
from dhat_jax.attacks.autoattack.journal import (
  Journal,
  digest,
  network_digest,
)
from dhat_jax.attacks.autoattack.judge import Judge
from dhat_jax.attacks.autoattack.packing import size_of_batches
from dhat_jax.attacks.autoattack.passes import (
  jit_hoisted,
  make_attack,
  make_attacks,
)
from dhat_jax.attacks.autoattack.progress import Progress, Reporter
from dhat_jax.attacks.autoattack.result import AutoAttackResult
from dhat_jax.runtime import files, streams


def _describe_problem(
  images: np.ndarray,
  labels: np.ndarray,
  clean_flags: np.ndarray,
  rng: chex.PRNGKey,
  budget: Budget,
  **options: Any,
) -> dict[str, Any]:
  """Describes what the flags depend on, in plain data, for the journal."""
  return {
    'images_and_labels': digest(images, labels),
    'clean_flags': digest(clean_flags),
    'rng': np.asarray(jax.random.key_data(rng)).tolist(),
    'budget': dataclasses.asdict(budget),
    **options,
  }


def _make_result(
  evaluation: Evaluation,
  images: np.ndarray,
  labels: np.ndarray,
  norm: str,
  clean: dict[str, np.ndarray],
  flags: dict[str, np.ndarray],
  differences: list[str],
  warnings: list[str],
  correct: dict[str, np.ndarray],
) -> AutoAttackResult:
  """Collects the result of an evaluation, with its warnings."""
  noisy = evaluation.correct.shape[1] > 1
  return AutoAttackResult(
    robust=evaluation.robust,
    images_adv=evaluation.images_adv,
    predictions=evaluation.predictions,
    margins=evaluation.margins,
    clean_margins=clean['margins'],
    clean_predictions=clean['predictions'],
    broken_by=evaluation.broken_by,
    broken_in=evaluation.broken_in,
    targets=image_table.broken_targets(
      evaluation.broken_by, evaluation.broken_in, evaluation.rankings
    ),
    changes=image_table.changes(images, evaluation.images_adv, norm),
    labels=labels,
    correct=evaluation.correct,
    clean_correct=clean['correct'],
    sampled_accuracy={
      name: noise.accuracies(flags) for name, flags in correct.items() if noisy
    },
    flags=flags,
    secs=evaluation.secs,
    differences=differences,
    warnings=[
      *differences,
      *warnings,
      *checks.warn_square(flags),
      *checks.warn_gradients(
        evaluation.zero_gradients, evaluation.broken_gradients
      ),
    ],
  )


def autoattack(
  logits_fn: Callable,
  images: chex.Array,
  labels: chex.Array,
  *,
  epsilon: float,
  norm: str = 'linf',
  version: str = 'standard',
  attacks: Sequence[str] | None = None,
  rng: chex.PRNGKey | None = None,
  batch_size: int = 250,
  n_iter: int = 100,
  n_queries: int = 5000,
  n_restarts: int | None = None,
  n_targets: int = 9,
  eot_iter: int | None = None,
  fab_stop_at_epsilon: bool = False,
  target_order: str = 'logits',
  randomized: bool = False,
  samples: int = 10,
  screening_fn: Callable | None = None,
  progress: bool | Callable[[Progress], None] = False,
  state_dir: str | os.PathLike | None = None,
  map_fn: Callable | None = None,
  precision: str | None = 'highest',
) -> AutoAttackResult:
  """Evaluates the robustness of a network.

  Version 'standard' runs apgd-ce, apgd-t, fab-t and square. 'plus' runs
  apgd-ce, apgd-dlr, fab, square, apgd-t and fab-t, with 5 restarts of the
  untargeted ones. 'rand' runs apgd-ce and apgd-dlr, with 20 gradients averaged
  per iteration. 'custom' runs the given attacks, with 5 restarts of the
  untargeted ones.

  With two or three classes apgd-t maximises the margin, and so does apgd-dlr
  with two: see `divergences.dlr`.

  Args:
    logits_fn: images [B, ...] -> logits [B, K], in evaluation mode, with any
      normalisation inside. Best left unjitted. With `randomized`, (images,
      key) -> logits.
    images: float [N, ...] in [0, 1]; Square expects [N, H, W, C].
    labels: int [N].
    epsilon: radius of the ball in [0, 1] units, used as given. 8/255 and .031
      are different problems.
    norm: 'linf' or 'l2'.
    version: see above.
    attacks: names, for 'custom'.
    rng: typed threefry key; default `streams.key(0)`. The flags depend on it,
      but not on how the images are split into batches.
    batch_size: the largest of all compiled calls. A multiple of the devices'
      number if `map_fn` uses several. Batches are even shares of the images; on
      a CPU they have at most 64 (Square: 32).
    n_iter: iterations of APGD and FAB. The standard is 100.
    n_queries: of Square. The standard is 5000.
    n_restarts: of apgd-ce, apgd-dlr and fab; default by version.
    n_targets: target classes; at most K - 1 are used.
    eot_iter: gradients averaged per iteration; default 20 with 'rand' or
      `randomized`, else 1. FAB and Square attack the mean of so many logits.
    fab_stop_at_epsilon: whether FAB leaves an image alone once it is broken.
      The flags are the same, its images are not the smallest perturbations; a
      warning says so. With `randomized` or `screening_fn` another network
      judges the images, and the flags may differ.
    target_order: of apgd-t's classes: 'logits', the largest clean ones first
      as in the original, or 'malt', the nearest ones first as if the network
      were linear (Melamed et al. 2024).
    randomized: whether logits_fn takes a key as second argument. It is called
      for one image at a time, in `vmap`, with a key for each.
    samples: evaluations by which an image of a randomised network is judged, at
      least 2. As many others choose which of its adversarial images is kept.
    screening_fn: a cheaper version of the network that the attacks see, for
      example in bfloat16; called as `logits_fn`, which judges every image that
      they return. So what counts as broken is broken. What counts as robust was
      not attacked through `logits_fn`; `differences` says so.
    progress: True prints a line per batch; or a function of `Progress`.
    state_dir: directory in which every finished batch is stored. A call with
      the same problem, network and directory resumes a killed one; any other is
      refused. At the end it holds `result.npz`.
    map_fn: (fn, in_axes) -> compiled fn; default `jit_hoisted`. For several
      devices: split the arguments (and results) whose axis is 0 over them,
      copy the others.
    precision: of matrix products and convolutions, as JAX names it. None is
      JAX's default: TF32 or bfloat16 on accelerators, which is faster, and a
      slightly different network.

  Returns:
    An `AutoAttackResult`.

  Raises:
    ValueError: bad arguments, or a state_dir of another problem or network. Or
      logits that are not an array [B, K], K >= 2, are probabilities, or are not
      finite.
    TypeError: logits_fn cannot be called.
  """
  balls.check_choice('norm', norm, balls.NORMS)
  arguments.length('epsilon', epsilon, norm, zero=False)
  names = checks.choose_attacks(version, attacks)
  arguments.flag('randomized', randomized)
  targets.check_order(target_order, names, randomized)
  integer('samples', samples, least=2)
  integer('batch_size', batch_size, least=1)
  budget_of = functools.partial(
    make_budget,
    version,
    n_iter=n_iter,
    n_queries=n_queries,
    n_restarts=n_restarts,
    n_targets=n_targets,
    eot_iter=eot_iter,
    stop_at_epsilon=fab_stop_at_epsilon,
    randomized=randomized,
  )
  integer('n_targets', n_targets, least=1)
  budget_of(classes=2)  # a mistake shows before anything compiles
  logits_fn = networks.checked(logits_fn)
  if screening_fn is not None:
    screening_fn = networks.checked(screening_fn, 'screening_fn')
  images, labels = checks.check_inputs(images, labels, names)
  rng = streams.key(0) if rng is None else rng
  balls.check_keys('rng', rng, one=True)
  devices = 1 if map_fn is None else jax.device_count()
  size = size_of_batches(len(images), batch_size, devices)
  map_fn = map_fn or jit_hoisted
  noise_rng = streams.fold_in(rng, 'autoattack/noise') if randomized else None

  with jax.default_matmul_precision(precision):
    evaluation = Evaluation(
      images,
      labels,
      epsilon=epsilon,
      batch_size=size,
      devices=devices,
      judge=Judge(logits_fn, map_fn, rng=noise_rng, samples=samples),
    )
    logits = evaluation.predict_clean()  # [N, K]
    clean = {
      'margins': evaluation.margins.copy(),
      'predictions': evaluation.predictions.copy(),
      'correct': evaluation.correct.copy(),
    }
    checks.check_logits(logits)
    classes = logits.shape[1]
    differences = [
      *checks.few_classes(names, classes, n_targets),
      *checks.screened(screening_fn, images[:1], classes, noise_rng),
    ]
    warnings = checks.warn_sigmoid(logits)
    if screening_fn is not None and not randomized:
      warnings += checks.warn_screening(
        evaluation.predicted_alike(map_fn(screening_fn, (0,)))
      )
    warnings += checks.warn_stops(
      names,
      fab_stop_at_epsilon,
      same_network=screening_fn is None and not randomized,
    )
    budget = budget_of(classes=classes)
    if randomized:
      warnings += checks.label_randomized(
        version, names, budget.eot_iter, samples
      )
    else:
      repeated, mixed = evaluation.repeat(map_fn(logits_fn, (0,)))
      warnings += checks.warn_randomized(
        repeated, labels[: len(repeated[0])]
      ) or checks.warn_batch(repeated[0][: len(mixed)], mixed)
    problem = _describe_problem(
      images,
      labels,
      evaluation.robust,
      rng,
      budget,
      epsilon=float(epsilon),
      norm=norm,
      version=version,
      attacks=names,
      batch_size=batch_size,
      packed_batches=size,
      randomized=randomized,
      precision=precision,
      # Journals of the original order are those of before it had a name.
      **({} if target_order == 'logits' else {'target_order': target_order}),
      **({'samples': samples} if randomized else {}),
    )
    state_dir = files.user_path(state_dir)
    if state_dir is not None:
      networks_by_name = {'network': logits_fn, 'screening': screening_fn}
      for key, network in networks_by_name.items():
        if network is not None:
          problem[key] = network_digest(
            network,
            np.broadcast_to(images[:1], (size, *images.shape[1:])),
            [] if noise_rng is None else [noise_rng],
          )
    journal = Journal(state_dir, problem)
    if state_dir is not None:
      journal.check_close(
        'network',
        {'clean logits': logits, 'logits of a probe': evaluation.probe()},
      )
    reporter = Reporter(progress, budget, names, classes, size)
    flags = {'clean': evaluation.robust.copy()}
    correct = {'clean': evaluation.correct.copy()}
    make = functools.partial(
      make_attack,
      logits_fn=screening_fn or logits_fn,
      norm=norm,
      budget=budget,
      randomized=randomized,
      by_mean_loss=version != 'rand',
    )
    for attack in make_attacks(names, make, map_fn, rng):
      name = attack.name
      if name == 'apgd-t' and target_order == 'malt':
        evaluation.rankings[name] = targets.malt_ranking(
          screening_fn or logits_fn,
          map_fn,
          images,
          labels,
          evaluation.robust,
          norm=norm,
          batch_size=size,
          classes=classes,
        )
      evaluation.attack(
        attack, budget=budget, journal=journal, reporter=reporter
      )
      flags[name] = evaluation.robust.copy()
      correct[name] = evaluation.correct.copy()
  result = _make_result(
    evaluation,
    images,
    labels,
    norm,
    clean,
    flags,
    differences,
    warnings,
    correct,
  )
  journal.save('result', result.arrays())
  return result
