"""Model adapters: load, towers, loss per sample, save. One file per family."""
