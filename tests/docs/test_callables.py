"""The programs of docs/callables run, and what the pages say of them is true.

Each page has one program, whose name is its file's. `evaluate` is its whole
call of `autoattack`; here with a small budget.
"""

import functools
import importlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

from dhat_jax.attacks.autoattack import checks
from dhat_jax.runtime import hoisting
from tests.docs.pages import DOCS, blocks, files

FOLDER = DOCS / 'callables'
BUDGET = {
  'version': 'custom',
  'attacks': ('apgd-ce',),
  'n_restarts': 1,
  'n_iter': 3,
}
# Convolution, dense layer; scale, bias, mean and variance of batch norm.
CONVOLUTION, BATCH_NORM, DENSE = 9 * 8 + 8, 4 * 8, 128 * 10 + 10
# The numbers of weights.
SIZES = {
  'flax_nnx': CONVOLUTION + BATCH_NORM + DENSE,
  'equinox': CONVOLUTION + DENSE,
  'plain_function': 64 * 32 + 32 + 32 * 10 + 10,
  'haiku': CONVOLUTION + BATCH_NORM + DENSE,
}
EXTRAS = {'equinox': 'equinox', 'haiku': 'haiku', 'pytorch': 'torch'}


@pytest.fixture(scope='module')
def names_of(tmp_path_factory):
  """Page -> names of its program, which trains its network once."""

  @functools.cache
  def run(page):
    if page in EXTRAS:
      pytest.importorskip(EXTRAS[page])
    ((name, text),) = files(FOLDER / f'{page}.md').items()
    path = tmp_path_factory.mktemp('callables') / name
    path.write_text(text)
    return runpy.run_path(str(path))

  return run


def hoisted_size(logits_fn, images):
  """Number of elements of the arrays that become arguments."""
  _, consts = hoisting.hoist(logits_fn, images)
  return sum(const.size for const in consts)


def test_each_page_is_tested():
  pages = {path.stem for path in FOLDER.glob('*.md')}
  assert pages == {*SIZES, 'pytorch', 'any_network'}
  for page in (*SIZES, 'pytorch'):
    assert list(files(FOLDER / f'{page}.md')) == [f'{page}_digits.py']


@pytest.mark.parametrize('page', SIZES)
def test_networks_are_attacked(page, names_of):
  names = names_of(page)
  result = names['evaluate'](**BUDGET)
  assert result.warnings == []
  assert result.clean_accuracy > 0.85
  assert 0.1 < result.robust_accuracy < result.clean_accuracy - 0.1
  size = hoisted_size(names['logits_fn'], names['images'][:1])
  assert size == SIZES[page]


@pytest.mark.parametrize('page', ['plain_function'])
def test_the_line_that_counts_weights(page, names_of, capsys):
  names = names_of(page)
  (line,) = blocks(FOLDER / 'any_network.md', 'py')
  exec(line, {'jax': jax, **names})
  assert capsys.readouterr().out == f'{SIZES[page]}\n'
  exec(line, {**names, 'jax': jax, 'logits_fn': jax.jit(names['logits_fn'])})
  assert capsys.readouterr().out == '0\n'


@pytest.mark.oracle
@pytest.mark.slow
def test_pytorch(names_of):
  names = names_of('pytorch')
  result = names['evaluate'](**BUDGET)
  assert result.warnings == []
  assert result.clean_accuracy > 0.85
  assert 0.1 < result.robust_accuracy < result.clean_accuracy - 0.1
  # The adversarial images are wrong for PyTorch itself, in its own layout.
  torch = importlib.import_module('torch')
  images = torch.tensor(result.images_adv).permute(0, 3, 1, 2)
  with torch.no_grad():
    predicted = names['net'](images).argmax(dim=1).numpy()
  np.testing.assert_array_equal(
    predicted == names['labels'][names['test']], result.robust
  )


def test_dropout_left_on_in_nnx(names_of):
  names = names_of('flax_nnx')
  net = nnx.clone(names['net'])
  net.dropout.train()
  images, labels = (names[key][:8] for key in ('images', 'labels'))
  with pytest.raises(errors.TraceContextError):
    jax.make_jaxpr(lambda x: net(x))(images)
  graph, state = nnx.split(net)

  def predict(images):
    return np.asarray(nnx.merge(graph, state, copy=True)(images))

  logits = predict(images)
  assert checks.warn_randomized([logits, predict(images)], labels) == []
  (warning,) = checks.warn_batch(logits, predict(images[::-1])[::-1])
  assert 'other images of the batch' in warning


def test_mistakes_in_equinox(names_of):
  names = names_of('equinox')
  equinox = importlib.import_module('equinox')
  images = names['images'][:2]
  training = equinox.nn.inference_mode(names['net'], value=False)
  with pytest.raises(RuntimeError, match='Dropout requires a key'):
    jax.vmap(training)(names['nchw'](images))
  jitted = equinox.filter_jit(names['logits_fn'])
  assert hoisted_size(jitted, images) == 0
  predict = equinox.filter_jit(lambda net, x: jax.vmap(net)(names['nchw'](x)))
  size = hoisted_size(lambda x: predict(names['net'], x), images)
  assert size == SIZES['equinox']


def test_mistakes_in_haiku(names_of):
  names = names_of('haiku')
  apply, images = names['net'].apply, names['images'][:2]
  variables = names['params'], names['net_state']
  with pytest.raises(ValueError, match=r'rng|PRNG'):
    apply(*variables, None, images, True)
  with pytest.raises(ValueError, match=r'at axis|shape'):
    apply(*variables, None, jnp.transpose(images, (0, 3, 1, 2)), False)
