"""Data sets: what they say (examples), how they are read, and per kind the calibration set and the task made
of them.
"""
