import sys

import numpy as np
import pytest

from dhat_jax.runtime import memory

linux = pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='reads /proc'
)


@linux
def test_the_peak_stays():
  before = memory.peak_mib()
  assert before > 10
  np.ones(2**26)  # 512 MiB, held for a moment
  assert memory.peak_mib() >= before
  assert memory.peak_mib() > 512


def test_freed_memory_is_returned_without_loss():
  kept = np.arange(10)
  memory.return_freed()
  np.testing.assert_array_equal(kept, np.arange(10))
