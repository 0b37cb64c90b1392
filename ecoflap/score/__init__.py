"""The coarse stage: how much the end-to-end loss depends on each layer."""
