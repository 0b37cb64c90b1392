"""The fine stage: remove weights, layer by layer, at the allocated counts."""
