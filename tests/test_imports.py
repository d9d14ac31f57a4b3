"""Imports inside the package go downward, and no chain of them is long."""

import ast
import functools
import pathlib

import dhat_jax

PACKAGE = pathlib.Path(dhat_jax.__file__).parent
# From the top down. What stands in one row does not import each other; a
# package may import within itself.
ROWS = [
  ['benchmark'],
  ['main', 'convert'],
  ['run'],
  ['from_config'],
  ['training', 'evaluation'],
  ['losses', 'pytorch'],
  ['attacks', 'models', 'report'],
  ['runtime', 'datasets', 'divergences', 'registry', 'arguments'],
]
# In the lowest row alone: data sets are registered, and their cache is written.
SIDEWAYS = {('datasets', 'runtime'), ('datasets', 'registry')}
LONGEST_CHAIN = 10
# No module of these sees a config; names and numbers stop at from_config.
PLAIN = ('training', 'evaluation', 'attacks', 'models', 'datasets')
PLAIN_FILES = ('losses', 'divergences', 'registry', 'arguments')


@functools.cache
def modules():
  """{name: path} of all modules of the package, without the configs' link."""
  found = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    if parts[1] == 'configs':
      continue
    if parts[-1] == '__init__':
      parts = parts[:-1]
    found['.'.join(parts)] = path
  return found


@functools.cache
def imports_of(module):
  """Modules of this package that a module imports, its functions' too."""
  found = set()
  for node in ast.walk(ast.parse(modules()[module].read_text())):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        found.add(name if name in modules() else node.module)
  return sorted(name for name in found if name in modules())


def room(module):
  """The package or file that a module belongs to: 'training', 'losses'."""
  return module.split('.')[1]


def row(name):
  for index, names in enumerate(ROWS):
    if name in names:
      return index
  raise AssertionError(f'{name} has no place in the order of imports')


def test_imports_go_downward():
  for module in modules():
    if module == 'dhat_jax':
      continue
    upper = room(module)
    for imported in imports_of(module):
      if imported == 'dhat_jax':
        continue
      lower = room(imported)
      assert (
        upper == lower or row(lower) > row(upper) or (upper, lower) in SIDEWAYS
      ), f'{module} imports {imported}'


def test_training_and_evaluation_do_not_know_each_other():
  for module in modules():
    for one, other in (('training', 'evaluation'), ('evaluation', 'training')):
      if module.startswith(f'dhat_jax.{one}'):
        assert not [
          name for name in imports_of(module) if room(name) == other
        ], module


@functools.cache
def chain(module):
  """The longest chain of imports from a module."""
  chains = [chain(name) for name in imports_of(module) if name != module]
  return (module, *max(chains, key=len, default=()))


def test_no_cycles_and_no_long_chains():
  # Without a cycle, or `chain` would not come to an end.
  longest = chain('dhat_jax.main')
  assert len(longest) <= LONGEST_CHAIN, '\n'.join(longest)


def test_no_config_below_from_config():
  """Neither as an import nor in an annotation."""
  for module, path in modules().items():
    if module == 'dhat_jax' or room(module) not in (*PLAIN, *PLAIN_FILES):
      continue
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or '', *(alias.name for alias in node.names)]
      elif isinstance(node, ast.Name):
        names = [node.id]
      elif isinstance(node, ast.arg) and node.annotation:
        names = [ast.unparse(node.annotation)]
      for name in names:
        assert 'ml_collections' not in name, f'{path}: {name}'
        assert 'ConfigDict' not in name, f'{path}: {name}'


def lines(path):
  return len(path.read_text().splitlines())


def test_files_are_short():
  tests = pathlib.Path(__file__).parent
  for folder, most in ((PACKAGE, 350), (tests, 400)):
    for path in folder.rglob('*.py'):
      assert lines(path) <= most, f'{path}: {lines(path)} lines'


def test_few_modules_lie_flat():
  flat = [path.name for path in PACKAGE.glob('*.py')]
  assert len(flat) <= 10, flat
