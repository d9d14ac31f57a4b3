"""Cutout, random erasing and CutMix against slow renderings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dhat_jax.training import augment

HEIGHT, WIDTH = 5, 4


def keys(num_images, seed=0):
  return jax.random.split(jax.random.key(seed), num_images)


def make_images(num_images, channels=2):
  """Floats in [.1, 1): zeros come from an augmentation alone."""
  shape = (num_images, HEIGHT, WIDTH, channels)
  return np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)


def box_of(changed):
  """Returns (top, left, height, width) of the pixels [H, W]: one rectangle."""
  rows, columns = np.nonzero(changed)
  if not len(rows):
    return 0, 0, 0, 0
  top, left = rows.min(), columns.min()
  height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
  assert len(rows) == height * width
  return top, left, height, width


def square(row, column, size):
  """The pixels of a square around one, a Python loop: bool [H, W]."""
  inside = np.zeros((HEIGHT, WIDTH), bool)
  for y in range(row - size // 2, row - size // 2 + size):
    for x in range(column - size // 2, column - size // 2 + size):
      if 0 <= y < HEIGHT and 0 <= x < WIDTH:
        inside[y, x] = True
  return inside


@pytest.mark.parametrize(('size', 'channels'), [(1, 2), (2, 2), (3, 1)])
def test_cutout_at_every_centre(size, channels):
  images = make_images(400, channels)
  results = np.asarray(augment.cutout(size=size)(keys(400), images))
  counts = {}
  squares = {
    (row, column): square(row, column, size)
    for row, column in np.ndindex(HEIGHT, WIDTH)
  }
  for image, result in zip(images, results, strict=True):
    erased = (result == 0).all(axis=2)
    np.testing.assert_array_equal(result[~erased], image[~erased])
    (centre,) = [c for c, s in squares.items() if (s == erased).all()]
    counts[centre] = counts.get(centre, 0) + 1
  assert set(counts) == set(squares)
  # 20 per centre; five standard deviations.
  assert max(counts.values()) < 20 + 5 * 20**0.5


def test_cutout_that_is_larger_than_the_image():
  images = make_images(20)
  with pytest.raises(ValueError, match='cutout: size: got 10, expected at'):
    augment.cutout(size=10)(keys(20), images)
  partly = np.asarray(augment.cutout(size=6)(keys(20), images))
  assert 0 < (partly != 0).mean() < 0.5


def test_fill_with_the_mean():
  images = make_images(30)
  results = np.asarray(augment.cutout(size=2, fill='mean')(keys(30), images))
  zeros = np.asarray(augment.cutout(size=2)(keys(30), images))
  for image, result, zero in zip(images, results, zeros, strict=True):
    erased = (zero == 0).all(axis=2)
    expected = np.broadcast_to(image.mean(axis=(0, 1)), image.shape)
    np.testing.assert_allclose(result[erased], expected[erased], rtol=1e-5)
    np.testing.assert_array_equal(result[~erased], image[~erased])


def test_fill_with_random_pixels():
  images = np.full((200, HEIGHT, WIDTH, 3), 2.0, np.float32)
  change = augment.cutout(size=2, fill='random')
  results = np.asarray(change(keys(200), images))
  drawn = results[results != 2]
  assert drawn.min() >= 0
  assert drawn.max() < 1
  assert len(set(drawn)) > 0.99 * len(drawn)
  assert abs(drawn.mean() - 0.5) < 5 / (12 * len(drawn)) ** 0.5


def published_sides(generator, height, width):
  """Height and width that random erasing draws: until they fit."""
  while True:
    area = generator.uniform(0.02, 0.4) * height * width
    aspect = generator.uniform(0.3, 1 / 0.3)
    sides = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    if sides[0] < height and sides[1] < width:
      return sides


def test_random_erasing_is_distributed_as_published():
  count, height, width = 3000, 16, 12
  images = np.ones((count, height, width, 1), np.float32)
  change = augment.random_erasing(fill='zeros', probability=1.0)
  results = np.asarray(jax.jit(change)(keys(count), images))
  boxes = np.array([box_of(result[..., 0] == 0) for result in results])
  generator = np.random.default_rng(0)
  expected = np.array(
    [published_sides(generator, height, width) for _ in range(count)]
  )
  for axis in range(2):
    sides, others = boxes[:, 2 + axis], expected[:, axis]
    error = (sides.std() ** 2 + others.std() ** 2) ** 0.5 / count**0.5
    assert abs(sides.mean() - others.mean()) < 5 * error
    assert sides.std() == pytest.approx(others.std(), rel=0.1)
    # Anywhere in the image: the place is U{0, ..., rest}.
    rest = images.shape[1 + axis] - sides
    place = (boxes[:, axis] + 0.5) / (rest + 1)
    inside = sides > 0
    assert abs(place[inside].mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5


@pytest.mark.parametrize('area', [0.0, 1.0])
def test_random_erasing_where_no_box_fits_or_is_empty(area):
  images = make_images(20)
  change = augment.random_erasing(
    smallest_area=area,
    largest_area=area,
    smallest_aspect=1.0,
    probability=1.0,
  )
  change = jax.jit(change)
  np.testing.assert_array_equal(change(keys(20), images), images)


def numbered(count, height, width):
  """Images of one value each: [count, H, W, 1], 1 to count."""
  values = np.arange(1, count + 1, dtype=np.float32)
  return np.broadcast_to(values[:, None, None, None], (count, height, width, 1))


def cut(mixing, count, height, width):
  """Returns (pixels that the partner fills [N, H, W], shares [N])."""
  images = numbered(count, height, width)
  mixed, shares = jax.jit(mixing.mix)(keys(count), images, -images)
  mixed = np.asarray(mixed)
  np.testing.assert_array_equal(np.abs(mixed), images)
  return (mixed < 0)[..., 0], np.asarray(shares)


def expected_paste(cuts, height, width):
  """Mean share of pixels that a box pastes, over all its centres."""
  total = 0.0
  for share in cuts:
    kept = 1.0
    for side in (height, width):
      length = int(np.sqrt(share) * side)
      covered = [
        max(0, min(side, c - length // 2 + length) - max(0, c - length // 2))
        for c in range(side)
      ]
      kept *= np.mean(covered) / side
    total += kept
  return total / len(cuts)


@pytest.mark.parametrize('alpha', [1.0, 0.4])
def test_cutmix_shares_are_pixels_and_sizes_follow_beta(alpha):
  count, height, width = 2000, 12, 9
  pasted, shares = cut(augment.cutmix(alpha=alpha), count, height, width)
  for image in pasted:
    box_of(image)
  fraction = pasted.mean(axis=(1, 2))
  np.testing.assert_allclose(shares, 1 - fraction, atol=1e-6)
  cuts = np.random.default_rng(0).beta(alpha, alpha, 4000)
  expected = expected_paste(cuts, height, width)
  error = fraction.std() * (1 / count + 1 / len(cuts)) ** 0.5
  assert abs(fraction.mean() - expected) < 5 * error
  # The other distribution would be noticed.
  extreme = (fraction == 0).mean()
  assert (extreme > 0.1) == (alpha < 1)


def test_cutmix_with_a_square_of_fixed_size():
  pasted, shares = cut(augment.cutmix(size=3), 400, HEIGHT, WIDTH)
  squares = {
    square(*centre, 3).tobytes() for centre in np.ndindex(HEIGHT, WIDTH)
  }
  assert {image.tobytes() for image in pasted} == squares
  np.testing.assert_allclose(shares, 1 - pasted.mean(axis=(1, 2)), atol=1e-6)
  # The largest that leaves a pixel somewhere, and the next one.
  largest = 2 * max(HEIGHT, WIDTH) - 2
  pasted, _ = cut(augment.cutmix(size=largest), 400, HEIGHT, WIDTH)
  assert pasted.mean() > 0.9
  assert not pasted.all()
  with pytest.raises(ValueError, match=f'expected at most {largest}: it'):
    cut(augment.cutmix(size=largest + 1), 4, HEIGHT, WIDTH)


FACTORIES = {
  'cutout': functools.partial(augment.cutout, size=3),
  'random_erasing': augment.random_erasing,
  'cutmix': augment.cutmix,
}


@functools.cache
def changed(name, probability):
  """Returns (images, their augmentation), jitted."""
  part = FACTORIES[name](probability=probability)
  images = make_images(400)
  if name == 'cutmix':
    partners = images[::-1]
    mixed, share = jax.jit(part.mix)(keys(400), images, partners)
    same = (np.asarray(mixed) == images).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(share == 1, same)
    return images, mixed
  return images, jax.jit(part)(keys(400), images)


@pytest.mark.parametrize('name', FACTORIES)
def test_probability(name):
  images, never = changed(name, 0.0)
  np.testing.assert_array_equal(never, images)
  _, always = changed(name, 1.0)
  different = (np.asarray(always) != images).any(axis=(1, 2, 3))
  # A small box of CutMix has no pixel.
  assert different.mean() > 0.85
  _, half = changed(name, 0.5)
  share = (np.asarray(half) != images).any(axis=(1, 2, 3)).mean()
  assert abs(share - different.mean() / 2) < 5 * 0.5 / 400**0.5
  # Which images change has a key of its own: what changes is as it was.
  same = (np.asarray(half) == always).all(axis=(1, 2, 3))
  assert (same | (np.asarray(half) == images).all(axis=(1, 2, 3))).all()


@pytest.mark.parametrize('name', FACTORIES)
def test_no_slices_at_places_that_only_the_data_knows(name):
  part = FACTORIES[name]()
  change = functools.partial(getattr(part, 'mix', part), keys(4))
  images = make_images(4)
  arguments = (images,) * (2 if name == 'cutmix' else 1)
  text = str(jax.make_jaxpr(change)(*arguments))
  assert 'gather' not in text
  assert 'dynamic_slice' not in text
  assert 'select_n' in text


def test_the_same_name_twice_draws_twice():
  """The first one draws as it would alone; the second elsewhere."""
  pixel = {'name': 'cutout', 'size': 1}
  once, twice = (
    np.asarray(augment.make_augmentation(names)(keys(40), make_images(40)))
    for names in ((pixel,), (pixel, pixel))
  )
  assert (twice[once == 0] == 0).all()
  pixels = (twice == 0).all(axis=3).sum(axis=(1, 2))
  assert set(pixels) <= {1, 2}
  assert (pixels == 2).mean() > 0.8  # of 20 pixels


@pytest.mark.parametrize('name', ['cutout', 'random_erasing'])
def test_an_image_follows_its_own_key(name):
  change = jax.jit(FACTORIES[name]())
  images, rngs = make_images(8), keys(8)
  whole = np.asarray(change(rngs, images))
  for half in (slice(0, 4), slice(4, 8)):
    np.testing.assert_array_equal(change(rngs[half], images[half]), whole[half])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: augment.cutout(size=0), 'size: got 0, expected an integer >= 1'),
    (
      lambda: augment.cutout(fill='grey'),
      r"fill: got 'grey', choices are \('zeros', 'mean', 'random'\)",
    ),
    (lambda: augment.cutout(probability=1.5), 'probability: got 1.5, expected'),
    (lambda: augment.random_erasing(smallest_area=-1), 'smallest_area: got -1'),
    (
      lambda: augment.random_erasing(largest_area=0.01),
      r'largest_area: got 0.01, expected in \[0.02, 1\]',
    ),
    (
      lambda: augment.random_erasing(smallest_aspect=0),
      r'smallest_aspect: got 0, expected in \(0, 1\]',
    ),
    (lambda: augment.cutmix(alpha=0), 'alpha: got 0, expected a finite number'),
    (lambda: augment.cutmix(size=-1), 'size: got -1'),
    (lambda: augment.cutmix(probability='x'), "probability: got 'x'"),
  ],
)
def test_arguments_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_config_that_names_them():
  chain = augment.make_augmentation(
    ('random_erasing', {'name': 'cutout', 'size': 2})
  )
  images = jnp.asarray(make_images(8))
  assert (np.asarray(jax.jit(chain)(keys(8), images)) == 0).any()
  with pytest.raises(ValueError, match=r"got \['cutmix', 'cutmix'\], expected"):
    augment.make_augmentation(('cutmix', 'cutout', 'cutmix'))
  with pytest.raises(ValueError, match=r'choices for .cutout. are'):
    augment.make_augmentation(({'name': 'cutout', 'length': 2},))
