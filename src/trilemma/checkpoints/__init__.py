"""Checkpoints: read safely, written atomically, rebuilt into a model, and how that model is sampled."""
