"""Imports inside the package go downward only."""

import ast
import pathlib

import dhat_jax

PACKAGE = pathlib.Path(dhat_jax.__file__).parent
# From the top down. A module may import modules of lower rows; `free` ones of
# its own row as well.
ROWS = [
  ['main'],
  ['report'],
  ['benchmark'],
  ['convert'],
  ['train'],
  ['build'],
  ['plan'],
  ['suite', 'robustbench'],
  ['audit'],
  ['parts'],
  ['heads'],
  ['ensemble', 'evaluation_store'],
  ['evaluate'],
  ['stages', 'steps', 'checkpoint', 'optim', 'metrics', 'workdir'],
  ['preemption'],
  ['input_pipeline'],
  ['torch_bridge', 'torch_names', 'torch_reference'],
  ['losses', 'attacks', 'models', 'datasets'],
  ['divergences', 'outputs', 'options', 'cli', 'parallel', 'train_state'],
  ['disk'],
]


def row_of(module):
  top = module.split('.')[1]
  for index, row in enumerate(ROWS):
    if top in row:
      return index
  raise AssertionError(f'{module} has no place in the order of imports')


def imports_of(path):
  """Modules of this package that a file imports when it is imported."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module == 'dhat_jax':
      yield from (f'dhat_jax.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module


def test_imports_go_downward():
  for path in PACKAGE.rglob('*.py'):
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    if path == PACKAGE / '__init__.py':
      continue
    module = '.'.join(parts)
    for imported in imports_of(path):
      if not imported.startswith('dhat_jax.'):
        continue
      same_package = imported.split('.')[1] == parts[1] and len(parts) > 2
      assert same_package or row_of(imported) > row_of(module), (
        f'{module} imports {imported}'
      )
