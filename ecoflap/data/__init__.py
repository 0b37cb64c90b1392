"""Readers of data sets: files of a published layout -> raw examples, for calibration and evaluation alike."""
