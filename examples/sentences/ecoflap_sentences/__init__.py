"""Prune a sentence encoder: MiniLM, and how often halves of passages find each other."""
