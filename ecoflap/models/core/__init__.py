"""What every step sees of a model: layers, blocks, towers, losses, and what its family can do."""
