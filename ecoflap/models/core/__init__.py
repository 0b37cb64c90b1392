"""The model as every step sees it: layers, blocks, towers, losses, and the protocols of its family."""
