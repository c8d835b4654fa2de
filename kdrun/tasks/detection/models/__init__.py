"""Detectors, a file for each family."""
