"""Tables and plots made from result records: ``python -m ecoflap.sweeps.report outputs/<sweep>``."""
