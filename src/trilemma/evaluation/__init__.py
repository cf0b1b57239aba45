"""What is measured of samples and models, and how a measurement is kept."""

NEAREST_K = 5
"""Neighbours by which precision, recall and coverage tell what is near: of fewer images there are none."""
