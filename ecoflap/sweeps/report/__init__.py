"""Tables and plots made from result records: ``ecoflap report outputs/sweeps/SWEEP``."""
