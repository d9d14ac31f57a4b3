"""Attacks on two and three classes against the exact minimum.

    python -m experiments.few_classes --out=docs/results/few_classes.json

The networks are small enough that the nearest adversarial image is known
(`exact_minima`). Each image is attacked at radii around its own minimum. An
exact attack breaks none of them below it, and all above. With four classes
targeted DLR is defined: these rows show what the original loss misses.

The losses that apgd-t could use in place of targeted DLR are compared: `apgd-t`
has the margin. A class that repeats a logit turns targeted DLR's denominator,
z_(1) - (z_(3) + z_(4)) / 2, into a ratio of three logits.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets, neural_network

from dhat_jax.attacks import apgd, fab, logits, square
from dhat_jax.runtime import documents, provenance, streams
from experiments import exact_minima

SIDE = 4  # of the images, in pixels
COMPARED = '1.01'  # where the table shows each attack alone
TOGETHER = 'all four'
HIDDEN = 12  # units of the ReLU networks
N_QUERIES = 500  # of Square
# Of an image's minimum; the first is below it.
RADII = (0.999, 1.001, 1.01, 1.05, 1.25)
ENSEMBLE = ('apgd-ce', 'apgd-t', 'fab-t', 'square')
# (network, norm, factor of the logits, classes)
CASES = (
  *(('linear', norm, 1, n) for norm in ('linf', 'l2') for n in (2, 3)),
  *(
    ('relu, trained', 'linf', factor, n) for factor in (1, 1000) for n in (2, 3)
  ),
  ('relu, trained', 'linf', 1, 4),
  *(('relu, random', 'linf', 1, n) for n in (2, 3, 4)),
)
DIGITS = (3, 8, 5, 9)  # the trained networks tell the first two, three or four


def with_least(three: jax.Array) -> jax.Array:
  """Repeats the least of three logits: the denominator is z_(1) - z_(3)."""
  return jnp.append(three, three.min(axis=1, keepdims=True), axis=1)


def with_middle(three: jax.Array) -> jax.Array:
  """Repeats the middle one: it is z_(1) - (z_(2) + z_(3)) / 2."""
  return jnp.append(three, jnp.sort(three, axis=1)[:, 1:2], axis=1)


# Of `apgd-t` on three classes, in place of the margin.
RATIOS = {
  'apgd-t, ratio to z1 - z3': with_least,
  'apgd-t, ratio to z1 - (z2 + z3) / 2': with_middle,
}


@functools.cache
def attacks_of(
  classes: int, norm: str, n_iter: int, n_queries: int
) -> dict[str, Callable]:
  """Compiles the attacks, one restart each; targeted ones try all classes.

  Returns:
    {name: as `compile_attack`}.
  """

  def towards_all(attack: Callable, wrap: Callable = lambda z: z) -> Callable:
    def run(logits_fn, images, labels, key, epsilon, indices):
      robust = [
        attack(
          lambda x: wrap(logits_fn(x)),
          images,
          labels,
          jax.random.fold_in(key, rank),
          # Of the classes themselves: a repeated logit is no target.
          targets=logits.target_classes(logits_fn, images, rank),
          norm=norm,
          n_iter=n_iter,
          epsilon=epsilon,
          indices=indices,
        )[0]
        for rank in range(2, classes + 1)
      ]
      return functools.reduce(jnp.logical_and, robust)

    return run

  def untargeted(attack: Callable, **budget: int) -> Callable:
    def run(logits_fn, images, labels, key, epsilon, indices):
      return attack(
        logits_fn,
        images,
        labels,
        key,
        norm=norm,
        epsilon=epsilon,
        indices=indices,
        **budget,
      )[0]

    return run

  apgd_t = functools.partial(apgd.apgd, loss='targeted_dlr')
  attacks = {
    'apgd-ce': untargeted(apgd.apgd, n_iter=n_iter),
    'apgd-t': towards_all(apgd_t),
    'fab-t': towards_all(fab.fab),
    'square': untargeted(square.square, n_queries=n_queries),
  }
  if classes == 3:
    for name, wrap in RATIOS.items():
      attacks[name] = towards_all(apgd_t, wrap)
  return {name: compile_attack(run) for name, run in attacks.items()}


def compile_attack(attack: Callable) -> Callable:
  """Compiles an attack for many images and radii.

  Args:
    attack: (logits_fn, images [1, ...], labels [1], key, epsilon, indices [1])
      -> robust [1].

  Returns:
    (net, factor, images [N, ...], labels [N], radii [N, R]) -> robust bool
    [N, R]. Each image is a batch of its own.
  """

  def one(net, factor, image, label, index, epsilon):
    return attack(
      lambda images: factor * exact_minima.logits_of(net, images),
      image[None],
      label[None],
      streams.key(0),
      epsilon,
      index[None],
    )[0]

  radii = jax.vmap(one, (None, None, None, None, None, 0))
  images = jax.jit(jax.vmap(radii, (None, None, 0, 0, 0, 0)))

  def run(net, factor, points, labels, epsilons):
    places = jnp.arange(len(points))
    return images(net, jnp.float32(factor), points, labels, places, epsilons)

  return run


class Problem(NamedTuple):
  """A network, and images that it predicts correctly.

  Attributes:
    net: the network.
    images: float32 [N, H, W, 1].
    labels: int32 [N].
    minima: float64 [N], the exact ones; all finite.
  """

  net: exact_minima.Network
  images: np.ndarray
  labels: np.ndarray
  minima: np.ndarray


def _trained(
  classes: int, seed: int, num_images: int
) -> tuple[exact_minima.Network, np.ndarray]:
  """Trains a network on digits of 4 x 4 pixels; returns images of others."""
  digits = datasets.load_digits()
  chosen = np.isin(digits.target, DIGITS[:classes])
  pixels = digits.images[chosen].reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)) / 16
  images = pixels.reshape(len(pixels), -1).astype(np.float32)
  labels = digits.target[chosen]
  order = np.random.default_rng([seed, 2]).permutation(len(images))
  test, train = order[:num_images], order[num_images:]
  model = neural_network.MLPClassifier(
    (HIDDEN,), random_state=seed, max_iter=2000
  )
  model.fit(images[train] - 0.5, labels[train])
  (w, v), (b, c) = model.coefs_, model.intercepts_
  if classes == 2:  # one logit
    v, c = (np.concatenate([-x / 2, x / 2], axis=-1) for x in (v, c))
  net = exact_minima.Network(*(np.float32(x) for x in (w, b, v, c)))
  return net, images[test]


def with_minima(
  net: exact_minima.Network, pixels: np.ndarray, norm: str
) -> Problem:
  """Finds the minima of images [N, D]; their labels are the predictions."""
  labels = exact_minima.logits_of(net, pixels).argmax(axis=1).astype(np.int32)
  minima = np.array(
    [
      exact_minima.distance(net, image, int(label), norm)
      for image, label in zip(pixels, labels, strict=True)
    ]
  )
  images = pixels.reshape(-1, SIDE, SIDE, 1)
  reached = np.isfinite(minima)
  return Problem(net, images[reached], labels[reached], minima[reached])


@functools.cache
def problem(
  kind: str, norm: str, classes: int, seed: int, num_images: int
) -> Problem:
  """Draws or trains a network, with images whose minimum is known."""
  if kind == 'relu, trained':
    return with_minima(*_trained(classes, seed, num_images), norm)
  hidden = HIDDEN if kind == 'relu, random' else 0
  net = exact_minima.make_network(
    seed, inputs=SIDE**2, hidden=hidden, classes=classes
  )
  rng = np.random.default_rng([seed, 1])
  pixels = rng.uniform(size=(num_images, SIDE**2)).astype(np.float32)
  return with_minima(net, pixels, norm)


def measure(
  kind: str,
  norm: str,
  factor: float,
  classes: int,
  *,
  seeds: int,
  num_images: int,
  n_iter: int = 100,
  n_queries: int = N_QUERIES,
) -> list[dict[str, Any]]:
  """Returns a row for each attack, and one for the ensemble's worst case."""
  attacks = attacks_of(classes, norm, n_iter, n_queries)
  broken = {name: [] for name in attacks}
  for seed in range(seeds):
    net, images, labels, minima = problem(kind, norm, classes, seed, num_images)
    radii = np.float32(minima[:, None] * np.float64(RADII))
    for name, run in attacks.items():
      robust = run(net, factor, images, labels, radii)
      broken[name].append(~np.asarray(robust))
  flags = {name: np.concatenate(parts) for name, parts in broken.items()}
  flags[TOGETHER] = np.any([flags[name] for name in ENSEMBLE], axis=0)
  shared = {
    'network': kind,
    'norm': norm,
    'factor': factor,
    'classes': classes,
    'images': len(flags[TOGETHER]),
  }
  return [
    {**shared, 'attack': name, 'broken': found.sum(axis=0).tolist()}
    for name, found in flags.items()
  ]


def table(document: Mapping[str, Any]) -> list[str]:
  """Returns the shares that are broken as a Markdown table, and its caption."""
  names = list(dict.fromkeys(row['attack'] for row in document['rows']))
  names.remove(TOGETHER)
  radii = [f'{radius:g}' for radius in document['radii']]
  place = radii.index(COMPARED)
  cases = {}
  for row in document['rows']:
    scale = '' if row['factor'] == 1 else f', logits x {row["factor"]}'
    norm = {'linf': 'Linf', 'l2': 'L2'}[row['norm']]
    case = f'{row["network"]}, {norm}{scale}', str(row['classes'])
    shares = [f'{100 * broken / row["images"]:.0f}' for broken in row['broken']]
    cases.setdefault(case, {})[row['attack']] = shares
  cells = [
    (
      *case,
      *shares[TOGETHER],
      *(shares[name][place] if name in shares else '' for name in names),
    )
    for case, shares in cases.items()
  ]
  headers = (
    *('network', 'classes'),
    *(f'{TOGETHER}, {radius}' for radius in radii),
    *(f'{name}, {COMPARED}' for name in names),
  )
  images = {row['images'] for row in document['rows']}
  return [
    documents.markdown_table(headers, cells, left=1),
    '',
    f'Images broken in %, at {", ".join(radii)} of the exact minimum of each. '
    f'{" or ".join(map(str, sorted(images)))} images of {SIDE} x {SIDE} '
    f'pixels, on {document["seeds"]} networks of each kind. ReLU networks have '
    f'{document["hidden"]} hidden units; the trained ones classify digits, and '
    f'see test images. One restart; {document["n_queries"]} queries of Square. '
    f'{provenance.describe(document["machine"])}.',
  ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  """Returns the flags; those of the command line by default."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', required=True, help='JSON file to write')
  parser.add_argument('--seeds', type=int, default=3, help='networks of a kind')
  parser.add_argument('--images', type=int, default=40, help='of each network')
  return parser.parse_args(arguments)


def main() -> None:
  """Measures all cases, and writes them."""
  options = parse()
  rows = []
  for case in CASES:
    rows += measure(*case, seeds=options.seeds, num_images=options.images)
    print(rows[-1], flush=True)
  body = {
    'what': 'few classes',
    'radii': RADII,
    'seeds': options.seeds,
    'hidden': HIDDEN,
    'n_queries': N_QUERIES,
    'rows': rows,
  }
  command = (
    f'python -m experiments.few_classes --out={options.out} '
    f'--seeds={options.seeds} --images={options.images}'
  )
  documents.write(
    options.out, documents.document('experiment', body, command=command)
  )


if __name__ == '__main__':
  main()
