"""Adversarial attacks as pure functions of objectives or logits."""
