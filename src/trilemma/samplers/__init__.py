"""How we walk back from noise to data."""
