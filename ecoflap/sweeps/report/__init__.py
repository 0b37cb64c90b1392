"""Tables and plots of result records: ``python -m ecoflap.sweeps.report outputs/<sweep>``."""
