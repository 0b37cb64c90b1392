"""Find checkpoints, check them, and load them."""
