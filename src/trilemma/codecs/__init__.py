"""What the model sees: image <-> code."""
