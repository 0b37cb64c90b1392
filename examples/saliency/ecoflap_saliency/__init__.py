"""Prune a saliency model: a ViT-S/14 with a small decoder."""
