"""Architecture only."""
