"""Detectors, one method a file: a verdict with a score from what an inversion found."""
