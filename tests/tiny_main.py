"""The command line, `dhat_jax.main`, but for a tiny backbone in every config.

python -m tests.tiny_main --config=configs/digits.py --workdir=WORKDIR
"""

from absl import app

from dhat_jax import main
from tests import tiny_run

if __name__ == '__main__':
  tiny_run.use_tiny_backbone()
  app.run(main.main, flags_parser=main._parse)
