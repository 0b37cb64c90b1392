"""The fine stage: remove weights layer by layer, as many as the allocation says."""
