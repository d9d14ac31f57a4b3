"""The table of randomised networks in docs/autoattack.md is measured."""

import re

import numpy as np

from tests.attacks import noisy
from tests.docs.pages import DOCS


def test_the_table_is_what_is_measured():
  text = (DOCS / 'autoattack.md').read_text()
  text = text[text.index('| margin / noise |') :]
  cells = r'\| ([\d.]+) ' * 6 + r'\|'
  shown = np.array(re.findall(cells, text)[:4], float)
  measured = np.array(noisy.table())
  np.testing.assert_allclose(shown[:, 0], measured[:, 0])
  # Other machines round differently: an evaluation or an image of 100 flips.
  np.testing.assert_allclose(shown[:, 1:], 100 * measured[:, 1:], atol=1.1)
