"""Tables and plots of result records: ``ecoflap report outputs/sweeps/SWEEP``."""
