"""CLIP, of transformers and of open_clip."""
