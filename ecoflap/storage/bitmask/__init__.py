"""Checkpoints that store only the weights that are not zero (docs/checkpoint_format.md)."""
