import dataclasses

import pytest

from dhat_jax.registry import Registry


@pytest.fixture
def parts():
  """A registry with a factory of each kind."""
  registry = Registry('part', shared=('axis_name',))

  @registry.register('plain')
  def plain():
    return 'plain'

  @registry.register('weighted')
  def weighted(*, weight, power=2.0):
    if weight < 0:
      raise ValueError(f'weight: got {weight}, expected >= 0')
    return weight**power

  @registry.register('net<depth>_<width>')
  @dataclasses.dataclass(frozen=True)
  class Net:
    depth: int
    width: float
    bias: bool = True

  @registry.register('synchronised')
  def synchronised(*, axis_name=None):
    return axis_name

  return registry


def test_mapping(parts):
  names = ('plain', 'weighted', 'net<depth>_<width>', 'synchronised')
  assert tuple(parts) == names
  assert len(parts) == 4
  assert parts['plain']() == 'plain'
  assert 'nothing' not in parts


def test_make(parts):
  assert parts.make('plain') == 'plain'
  assert parts.make('plain', {}) == 'plain'
  assert parts.make('weighted', {'weight': 3}) == 9
  assert parts.make('weighted', {'weight': 3, 'power': 1}) == 3
  factory, numbers = parts.find('weighted')
  assert factory is parts['weighted']
  assert numbers == {}


def test_numbers_in_names(parts):
  net = parts['net<depth>_<width>']
  assert parts.make('net10_2') == net(10, 2)
  assert type(parts.make('net10_2').width) is int
  assert parts.make('net10_0.5') == net(10, 0.5)
  assert parts.make('net010_2') == net(10, 2)
  assert parts.make('net10_2', {'bias': False}) == net(10, 2, bias=False)
  assert tuple(parts.options('net10_2')) == ('bias',)


@pytest.mark.parametrize(
  'name',
  [
    'net10.5_2',  # depth is an int
    'net10',
    'net10_2_3',
    'net-10_2',
    'net10_',
    'xnet10_2',
    'net<depth>_<width>',
    'Plain',
    '',
    None,
    7,
    ['plain'],
  ],
)
def test_unknown_name(parts, name):
  with pytest.raises(ValueError, match='choices are') as error:
    parts.make(name, where='config.part')
  message = str(error.value)
  assert message.startswith(f'config.part: got {name!r}, choices are (')
  assert "'plain', 'weighted', 'net<depth>_<width>', 'synchronised'" in message
  assert '\n' not in message


def test_nearest_name(parts):
  with pytest.raises(ValueError, match=r"; did you mean 'weighted'\?$"):
    parts.make('wieghted')
  with pytest.raises(ValueError, match=r"'synchronised'\)$"):
    parts.make('qqq')


def test_where_it_went_wrong(parts):
  with pytest.raises(ValueError, match=r"^part: got 'no'"):
    parts.make('no')
  with pytest.raises(ValueError, match=r"^config\.part\.name: got 'no'"):
    parts.make('no', {}, where='config.part')
  message = r'^config\.part: weight: got -1, expected >= 0$'
  with pytest.raises(ValueError, match=message):
    parts.make('weighted', {'weight': -1}, where='config.part')


def test_surplus_option(parts):
  message = (
    r"^config\.part: got \('wieght',\), choices for 'weighted' are "
    r"\('weight', 'power'\); did you mean 'weight'\?$"
  )
  for function in (parts.make, parts.check):
    with pytest.raises(ValueError, match=message):
      function('weighted', {'wieght': 1}, where='config.part')
  # What the name says already, and what is not the config's to say.
  for name, option in (('net10_2', 'depth'), ('synchronised', 'axis_name')):
    with pytest.raises(ValueError, match=f"got \\('{option}',\\)"):
      parts.make(name, {option: 1})


def test_missing_option(parts):
  message = r"^config\.part: 'weighted' lacks \('weight',\)$"
  for options in (None, {}, {'power': 1}):
    with pytest.raises(ValueError, match=message):
      parts.check('weighted', options, where='config.part')


def test_check_makes_nothing(parts):
  parts.check('weighted', {'weight': -1})


def test_shared_arguments(parts):
  assert parts.make('synchronised', axis_name='batch') == 'batch'
  assert parts.make('synchronised') is None
  assert parts.make('plain', axis_name='batch') == 'plain'


def test_shared_argument_that_is_called_name():
  registry = Registry('part', shared=('name',))
  registry.register('plain')(lambda name=None: name)
  assert registry.make('plain', name='aggregator') == 'aggregator'


def run_file(path, text, **names):
  """Runs a file's text as Python does, with some names defined."""
  exec(
    compile(text, path, 'exec'), {'__name__': 'a', '__file__': path, **names}
  )


MINE = """
@registry.register('mine')
class Mine:
  value = {value}
"""


def test_same_file_again_replaces(parts):
  run_file('my.py', MINE.format(value=1), registry=parts)
  run_file('my.py', MINE.format(value=2), registry=parts)
  assert parts.make('mine').value == 2
  assert len(parts) == 5


def test_notebook_cells_are_one_file(parts):
  for cell in (1, 2):
    code = compile(MINE.format(value=cell), f'/tmp/ipykernel/{cell}.py', 'exec')
    exec(code, {'__name__': '__main__', 'registry': parts})
  assert parts.make('mine').value == 2


def test_name_of_another_file_is_taken(parts):
  run_file('my.py', MINE.format(value=1), registry=parts)
  message = r"^part 'mine': registered already, by .*/my\.py$"
  with pytest.raises(ValueError, match=message):
    run_file('other.py', MINE.format(value=2), registry=parts)
  assert parts.make('mine').value == 1


@pytest.mark.parametrize(
  ('name', 'factory', 'message'),
  [
    ('a', lambda x, /: x, 'got argument x, expected arguments that can be'),
    ('a', lambda *x: x, r'got argument \*x'),
    ('a', lambda **x: x, r'got argument \*\*x'),
    ('a<x>_<y>', lambda x: x, r"got a factory without \['y'\]"),
  ],
)
def test_factories_that_cannot_be_registered(parts, name, factory, message):
  with pytest.raises(ValueError, match=message):
    parts.register(name)(factory)
  assert name not in parts
