"""Fixtures of the attacks' tests."""

import pytest

from tests.attacks import linear


@pytest.fixture(scope='session')
def standard():
  """Result of the standard ensemble on the linear problem."""
  return linear.standard()
