"""One training run: directory, lock, record, trainer."""
