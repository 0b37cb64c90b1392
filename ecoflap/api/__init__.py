"""The Python API: each step as a function, and all of them in one call."""
