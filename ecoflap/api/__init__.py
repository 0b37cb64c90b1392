"""The Python API: the steps as functions, and one call that does them all."""
