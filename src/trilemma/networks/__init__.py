"""What predicts: architecture only."""
