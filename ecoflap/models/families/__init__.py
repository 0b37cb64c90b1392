"""The families of models that can be loaded."""
