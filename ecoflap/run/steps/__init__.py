"""The steps of a run, each a function that adds its product to the state; ``ecoflap.run.pipeline`` puts them
in order.
"""
