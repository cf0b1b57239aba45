"""A training run: its directory, lock, record and trainer."""
