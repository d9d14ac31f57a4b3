"""AutoAttack on any JAX function from images to logits."""

from dhat_jax.attacks.autoattack.ensemble import autoattack
from dhat_jax.attacks.autoattack.result import AutoAttackResult

__all__ = ['AutoAttackResult', 'autoattack']
