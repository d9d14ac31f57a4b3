"""Training attacks by name, as a config gives them.

A training attack maximises an objective. It sees no model and no label.

    attack(objective, rng, images, scale=1.0) -> images_adv

`objective` maps images [B, ...] to [B]. `rng` is a typed key, or one per
example [B]. Images are float [B, ...] in [0, 1]. `scale` multiplies epsilon and
may be traced (warm-up). `images_adv` has the images' shape and dtype, is in the
ball and in [0, 1], and passes no gradient. The randomness of an example depends
on its own key alone (`balls.per_example_keys`).

A config file registers an attack as a factory of keyword arguments, and names
it in `config.<stage>.attack.name`. The factory takes those of `epsilon`,
`step_size`, `steps`, `norm` and `start` that it needs. Its other arguments are
keys beside the name:

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
