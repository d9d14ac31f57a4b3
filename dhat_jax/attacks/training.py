"""Training attacks by name, as a config gives them.

A training attack maximises an objective: it sees no model and no label.

    attack(objective, rng, images, scale=1.0) -> images_adv

`objective` maps images [B, ...] to [B]; `rng` is a typed key, or one per
example [B]; images are float [B, ...] in [0, 1]; `scale` multiplies epsilon
and may be traced (warm-up). `images_adv` has the images' shape and dtype, lies
in the ball and in [0, 1], and passes no gradient. What is random about an
example hangs on its own key alone (`balls.per_example_keys`).

A config file adds an attack of its own by a factory of keyword arguments, and
names it in `config.<stage>.attack.name`. From `epsilon`, `step_size`, `steps`,
`norm` and `start` it takes those that it needs; its other arguments are keys
that stand beside the name:

    from dhat_jax.attacks import training

    @training.register('corners')
    def corners(*, epsilon, share=0.5):
      def attack(objective, rng, images, scale=1.0):
        ...
      return attack
"""

from dhat_jax.attacks import pgd
from dhat_jax.registry import Registry

TRAINING_ATTACKS = Registry(
  'training attack',
  shared=('epsilon', 'step_size', 'steps', 'norm', 'start'),
)
register = TRAINING_ATTACKS.register

register('pgd')(pgd.make_attack)
register('fgsm')(pgd.fgsm)
