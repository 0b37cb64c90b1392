"""Files that the package writes and reads: stage cache, leases, masks, checkpoints and result records."""
