"""Prune a saliency model: a ViT-S/14 that marks what a picture is about."""
