"""Fine-tuning after pruning, with removed weights fixed at zero."""
