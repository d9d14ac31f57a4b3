"""One strict environment for every test: two CPU devices, compilation cache."""

import gc
import importlib.metadata
import os
import signal
import tempfile

# Before JAX starts: two simulated devices, and threads enough for both.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('NPROC', '4')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  os.path.join(tempfile.gettempdir(), 'dhat_jax_test_cache'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax

# Tests compile much and compute little. XLA reads the flags at JAX's first use.
_FLAGS = [
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # Two thirds of the time to compile; later versions refuse the flag.
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
if importlib.metadata.version('jaxlib') == '0.10.2':
  # As `processes.initialize` sets it, which some tests call: what runs in this
  # process and what it starts must round alike.
  _FLAGS.append('--xla_cpu_experimental_ynn_fusion_type=')
# Once: the compilation cache tells flags that are given twice from others.
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
  [_given, *(flag for flag in _FLAGS if flag not in _given.split())]
).strip()

# Tests trace much, and what they trace stays: a seventh of their time.
gc.set_threshold(50_000, 20, 20)

# A run leaves ignored what its parent ignored, as `nohup` and a shell's `&` do;
# the runs that tests stop must not have such a parent.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(items):
  """Files with whole runs first: at the end they would leave workers idle."""
  whole = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in whole)
