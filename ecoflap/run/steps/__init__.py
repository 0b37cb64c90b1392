"""The steps of a run, each a function that adds its product to the run state."""
