"""Prune a sentence encoder: MiniLM, evaluated by retrieval of passages."""
