"""Training after pruning: what was removed stays removed."""
