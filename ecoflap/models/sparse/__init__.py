"""Products with weights that are kept as a bit per weight and the values that are not zero."""
