"""Blocks that are on the device only while they run."""
