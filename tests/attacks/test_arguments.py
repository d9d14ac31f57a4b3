"""The door for arguments: which one, what was given, what is expected."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from dhat_jax.arguments import integer
from dhat_jax.attacks import apgd, arguments, balls, fab, pgd, square
from dhat_jax.attacks.autoattack import autoattack
from dhat_jax.attacks.autoattack.budget import Budget
from dhat_jax.evaluation import attacks
from dhat_jax.models.dual_head import DualHeadNet
from dhat_jax.training.state import create_train_state
from tests.attacks import linear
from tests.helpers.tiny import TinyBackbone

KEY = jax.random.key(0, impl='threefry2x32')
IMAGES, LABELS = linear.problem(count=4, wrong=0)
quick = hypothesis.settings(
  max_examples=60, deadline=None, derandomize=True, database=None
)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'n_restarts': -1}, 'n_restarts: got -1, expected an integer >= 1'),
    ({'n_restarts': 0}, 'n_restarts: got 0'),
    ({'n_targets': 0}, 'n_targets: got 0'),
    ({'n_iter': 0}, 'n_iter: got 0'),
    ({'n_iter': 2.0}, 'n_iter: got 2.0'),
    ({'n_iter': True}, 'n_iter: got True'),
    ({'n_queries': 0}, 'n_queries: got 0'),
    ({'eot_iter': 0}, 'eot_iter: got 0'),
    ({'batch_size': 0}, 'batch_size: got 0'),
    ({'batch_size': 2.5}, 'batch_size: got 2.5'),
    ({'epsilon': 8.0}, r'epsilon: got 8.0, .*units of \[0, 1\], not of 255'),
    ({'epsilon': float('nan')}, 'epsilon: got nan'),
    ({'epsilon': '8/255'}, "epsilon: got '8/255'"),
    ({'epsilon': float('inf'), 'norm': 'l2'}, 'epsilon: got inf'),
    ({'norm': np.inf}, 'norm: got inf, choices'),
    ({'randomized': 1}, 'randomized: got 1, expected True or False'),
    ({'version': ['custom']}, r"version: got \['custom'\], choices"),
    ({'attacks': 'square'}, "attacks: got 'square', expected several"),
    ({'rng': jax.random.PRNGKey(0)}, 'rng: got uint32 .*typed key'),
    ({'rng': jax.random.key(0, impl='rbg')}, 'rng: got key<rbg>.*threefry'),
    ({'rng': jax.random.split(KEY)}, r'rng: got keys of shape \(2,\)'),
    ({'labels': np.full(4, 2**40)}, 'labels: got 1099511627776 to'),
    ({'labels': np.full(4, -1)}, 'labels: got -1 to -1'),
    ({'images': IMAGES * np.nan}, 'images: got values in .nan'),
  ],
)
def test_autoattack_names_the_argument(options, match):
  arguments = {
    'images': IMAGES,
    'labels': LABELS,
    'epsilon': 0.1,
    'version': 'custom',
    'attacks': ('apgd-ce',),
    **options,
  }
  with pytest.raises(ValueError, match=match):
    autoattack(lambda images: 1 / 0, **arguments)  # nothing is predicted


ALONE = {
  'apgd': (apgd.apgd, {'n_iter': 0, 'eot_iter': 0, 'rho': 2, 'loss': 'kl'}),
  'apgd-t': (
    functools.partial(apgd.apgd_targeted, target_rank=2),
    {'target_rank': 1},
  ),
  'fab': (fab.fab, {'n_iter': 0, 'beta': 2, 'eta': 0, 'random': 2}),
  'fab-t': (
    functools.partial(fab.fab_targeted, target_rank=2),
    {'target_rank': 6},
  ),
  'square': (square.square, {'n_queries': 0, 'p_init': -1, 'first': -1}),
}
EVERYWHERE = {
  'epsilon': 8.0,
  'norm': 'l1',
  'rng': jax.random.key(0, impl='rbg'),
  'images': np.full((4, 6, 6, 2), 255, np.uint8),
  'labels': np.full(4, 5),
  'active': np.ones(3, bool),
  'indices': np.ones(4),
}


@pytest.mark.parametrize('name', ALONE)
def test_attacks_alone_name_the_argument(name):
  attack, numbers = ALONE[name]
  for argument, value in {**EVERYWHERE, **numbers}.items():
    given = {
      'images': IMAGES,
      'labels': LABELS,
      'rng': KEY,
      'epsilon': 0.1,
      argument: value,
    }
    with pytest.raises(ValueError, match=f'^{argument}: got '):
      attack(linear.logits_of, **given)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('restarts', 0),
    ('steps', -1),
    ('steps', 1.5),
    ('epsilon', 8.0),
    ('step_size', 2.0),
    ('start_scale', 255),
    ('objective', 2),
  ],
)
def test_settings_name_the_field(field, value):
  settings = pgd.Settings(0.1, 0.1, 1)._replace(**{field: value})
  attack = pgd.make_evaluation_attack()
  with pytest.raises(ValueError, match=f'^{field}: got '):
    attack(linear.logits_of, IMAGES, LABELS, KEY, settings)
  # The evaluation's door, before anything is traced.
  with pytest.raises(ValueError, match=f'^{field}: got '):
    attacks.gradient(settings, norm='linf')


def test_no_restart_is_no_robustness():
  """Traced, where nothing can be raised."""
  attack = pgd.make_evaluation_attack()
  run = jax.jit(functools.partial(attack, linear.logits_of))
  for restarts, robust in [(0, 0), (-3, 0), (1, 4)]:
    settings = pgd.Settings(1e-6, 1e-6, 1, restarts)
    assert run(IMAGES, LABELS, KEY, settings)[0].sum() == robust


def test_a_budget_with_which_an_attack_would_not_run():
  for name in ('n_iter', 'n_queries', 'n_restarts', 'n_targets', 'eot_iter'):
    with pytest.raises(ValueError, match=f'{name}: got 0'):
      Budget(**{name: 0})


def test_keys_of_another_generator_are_refused_where_noise_is_promised():
  for implementation in ('rbg', 'unsafe_rbg'):
    rng = jax.random.key(0, impl=implementation)
    with pytest.raises(ValueError, match='expected a threefry key'):
      balls.per_example_keys(rng, 2)
    with pytest.raises(ValueError, match='expected a threefry key'):
      create_train_state(
        net=DualHeadNet(TinyBackbone(), 3, outputs=('main',)),
        tx=optax.identity(),
        trains=('trunk',),
        rng=rng,
        image_shape=(8, 8, 1),
      )


def test_keys_are_threefry_whatever_the_default_is():
  expected = linear.attack('apgd-ce').images_adv
  with jax.default_prng_impl('rbg'):
    result = linear.attack('apgd-ce', batch_size=7)
  np.testing.assert_allclose(result.images_adv, expected, atol=1e-6)


ANYTHING = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.floats(),
  st.complex_numbers(),
  st.text(max_size=3),
  st.binary(max_size=3),
  st.lists(st.integers(-2, 2), max_size=2),
  st.sampled_from(
    [
      np.int64(3),
      np.float32(0.5),
      np.bool_(True),
      np.ones(2),
      np.ones((1, 1), int),
      np.array('a'),
      np.array(2),
      jnp.ones(()),
      jnp.ones(3, jnp.bfloat16),
      KEY,
      object(),
      {},
      len,
    ]
  ),
)


@quick
@hypothesis.given(
  value=ANYTHING,
  check=st.sampled_from(
    [
      functools.partial(integer, least=1),
      arguments.share,
      arguments.positive,
      arguments.flag,
      functools.partial(arguments.length, norm='linf'),
      functools.partial(arguments.length, norm='l2'),
      lambda name, got: arguments.float_images(got),
      functools.partial(arguments.classes, batch_size=2, num_classes=3),
      lambda name, got: balls.check_keys(name, got, one=True),
    ]
  ),
)
def test_a_check_returns_or_raises_one_line_of_ours(value, check):
  _, error = linear.outcome(check, 'argument', value)
  assert error == '' or error.startswith(('argument: got ', 'images: got '))


ARRAYS = st.sampled_from(
  [
    IMAGES,
    IMAGES.astype(np.float16),
    jnp.asarray(IMAGES, jnp.bfloat16),
    IMAGES.astype(np.float64),
    IMAGES.tolist(),
    IMAGES - 1,
    IMAGES * np.nan,
    IMAGES[0, 0, 0],
    IMAGES[:0],
    (IMAGES * 255).astype(np.uint8),
    IMAGES.astype(object),
    IMAGES.astype(str),
  ]
)
CLASSES = st.sampled_from(
  [
    LABELS,
    LABELS.tolist(),
    LABELS.astype(np.uint8),
    LABELS.astype(np.float32),
    LABELS - 9,
    LABELS[:2],
    LABELS[:, None],
    LABELS > 1,
    None,
  ]
)


@quick
@hypothesis.given(
  images=ARRAYS,
  labels=CLASSES,
  epsilon=st.one_of(st.just(0.1), ANYTHING),
  norm=st.sampled_from(['linf', 'l2', 'l1', None, 2]),
  number=st.one_of(st.just(1), ANYTHING),
  rng=st.sampled_from([KEY, None, jax.random.split(KEY), 0, 'seed']),
)
def test_autoattack_works_or_raises_ours(
  images, labels, epsilon, norm, number, rng
):
  result, error = linear.outcome(
    autoattack,
    linear.logits_of,
    images,
    labels,
    epsilon=epsilon,
    norm=norm,
    version='custom',
    attacks=('fab-t',),
    n_targets=number,
    n_iter=1,
    rng=rng,
  )
  if result is None:
    assert ': got ' in error
    return
  assert np.isfinite(result.images_adv).all()
  right = balls.is_right(
    np.asarray(linear.logits_of(result.images_adv)), LABELS
  )
  np.testing.assert_array_equal(result.robust, right)
