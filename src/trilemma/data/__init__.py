"""Data sets: splits, batches, and the loader."""
