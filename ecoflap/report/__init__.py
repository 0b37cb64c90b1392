"""Tables and plots made from result records: ``python -m ecoflap.report outputs/<sweep>``."""
