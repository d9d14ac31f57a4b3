"""AutoAttack on any JAX function from images to logits."""

from dhat_jax.attacks.autoattack.ensemble import AutoAttackResult, autoattack

__all__ = ['AutoAttackResult', 'autoattack']
