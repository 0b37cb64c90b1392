"""Models: what the steps see of them (core), and how each family is loaded, placed and saved."""
