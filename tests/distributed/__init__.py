"""Runs in several processes."""
