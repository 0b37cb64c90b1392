"""Data sets: examples, readers, and for each kind of data the calibration set and the task."""
