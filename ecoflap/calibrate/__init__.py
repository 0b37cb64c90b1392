"""Data sets become frozen samples, and samples run through blocks: capture, replay, suffix runs."""
