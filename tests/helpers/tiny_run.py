"""A whole run that takes seconds: digits, a tiny backbone, few steps.

    python -m tests.helpers.tiny_run WORKDIR [dotted.key=value ...] \
        [--process_id=0 ...]

runs it as the command line would, without the report (seconds of figures, which
other tests draw); tests kill it and run it again. Options with dashes are those
of `processes.initialize`.
"""

import ast
import sys

from dhat_jax.configs import digits
from tests.helpers import tiny  # noqa: F401 - registers the backbone 'tiny'


def get_config(**overrides):
  """Returns the config; overrides are {'dotted.key': value}."""
  config = digits.get_config()
  config.name = 'tiny'
  config.model.backbone = 'tiny'
  config.compare_with_natural = False
  for name in config.stages:
    config[name].epochs = 0.5  # 10 steps
    config[name].attack.steps = 2
  config.checkpoint.every_steps = 3
  config.log_every_steps = 2
  config.validation.attack = 'pgd_2'
  config.evaluation.attacks = ('clean', 'fgsm', 'pgd_2', 'cw_2')
  config.evaluation.audit = False
  config.evaluation.batch_size = 100  # 360 images: the last batch is padded
  for path, value in overrides.items():
    *groups, key = path.split('.')
    target = config
    for group in groups:
      target = target[group]
    with target.ignore_type():
      target[key] = value
  return config


def main():
  """Runs with the arguments of the command line, as `dhat_jax.main` does."""
  from dhat_jax import main as command

  workdir, *options = sys.argv[1:]
  values = {}
  for option in options:
    key, _, value = option.partition('=')
    values[key] = ast.literal_eval(value)
  start_up = {k[2:]: v for k, v in values.items() if k.startswith('--')}
  config = get_config(
    **{k: v for k, v in values.items() if not k.startswith('--')}
  )
  command.run(config, workdir, 'train', report=False, **start_up)


if __name__ == '__main__':
  main()
