"""Repairing what pruning broke, from calibration data and without training."""
