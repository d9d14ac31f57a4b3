"""What `tests.fuzz` mutates, and by what."""

import math

from ml_collections import ConfigDict

# Flags of each command that fit together.
FLAGS = {
  'main': [
    '--config=configs/digits.py',
    '--workdir=w',
    '--mode=train',
    '--distributed',
    '--coordinator_address=host:1',
    '--num_processes=2',
    '--process_id=0',
    '--cpu_devices=2',
    '--only_check_args',
    '--config.seed=3',
  ],
  'convert': [
    '--config=configs/digits.py',
    '--workdir=w',
    '--from_torch=m.pt',
    '--to_torch=m.pt',
    '--config.model.mean=(0.5,)',
  ],
  'benchmark': [
    '--config=configs/digits.py:sat_wrn10_1',
    '--what=training',
    '--stage=main_head',
    '--batch_size=64,128',
    '--dtype=float32',
    '--images=4',
    '--n_iter=1',
    '--n_queries=1',
    '--steps=3',
    '--repeats=1',
    '--cpu_devices=1',
    '--out=m.json',
    '--json',
    '--config.main_head.epochs=2',
  ],
  'report': ['--workdir=w', '--workdir=x', '--out=o'],
}
# On command lines.
TEXTS = (
  *('nan', 'inf', '-inf', '-1', '0', '1e309', '1e30', '-0.5', '1.5', '3'),
  *('()', '(1,)', '[]', '[1]', '{}', 'None', 'True', 'false', 'é', '漢字'),
  *('٣', '²', '%s', "'", '"', '\\', '../..', '~', '=', '--', '1_000', '0x10'),
  *('1,2', 'nan,nan', '(nan,)', '((1,),)', '("a",)', '(1,"a")', '{"a":1}'),
  *('', ' ', '\x00', 'a\nb', 'x' * 5000, '9' * 5000, '(' * 300, 'lambda: 1'),
)
# In config files.
VALUES = (
  *(math.nan, math.inf, -math.inf, -1, -1.5, 0, 0.0, 1, 1.5, 3, 1e30, 10**30),
  *(True, False, None, '', 'x', 'é', 'x' * 5000, b'x', 1j, object(), int),
  *((), (1,), ('a',), (None,), (math.nan,), (0, 0), ((1,),), (True,), (1e30,)),
  *((-1,), (3, 2), (2, 2), (1.5,), ({'name': 'x'},), ({},), [], ['a'], {1}),
  *({}, {'a': 1}, ConfigDict(), ConfigDict({'name': 'x'}), lambda: 1),
)
# Config files, by what is wrong with them.
FILES = {
  'syntax': 'def get_config(:\n',
  'indent': 'def get_config():\nreturn 1\n',
  'empty': '',
  'nothing': 'def get_config(): pass\n',
  'dict': 'def get_config(): return {}\n',
  'nested': 'def get_config(): return {"name": "x", "stages": 3}\n',
  'list': 'def get_config(): return [1]\n',
  'raises': 'def get_config(): raise ValueError("no")\n',
  'key': 'def get_config(): return {}["x"]\n',
  'exits': 'import sys\ndef get_config(): sys.exit(3)\n',
  'at_import': 'import nonexistent_module\ndef get_config(): return {}\n',
  'recursive': 'def get_config(): return get_config()\n',
  'number': 'get_config = 3\n',
  'arguments': 'def get_config(a, b): return {}\n',
  'integers': 'def get_config(): return {1: 2}\n',
  'null': 'x = "\0"\n',
  'bytes': b'\xff\xfe\x00',
  'self': (
    'from ml_collections import ConfigDict\ndef get_config():\n'
    '  c = ConfigDict()\n  c.a = c\n  return c\n'
  ),
}
