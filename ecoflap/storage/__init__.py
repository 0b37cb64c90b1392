"""What is written and read: the stage cache, leases, masks, checkpoints and result records."""
