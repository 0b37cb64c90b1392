"""Offload blocks: their weights are on the device only while they run."""
