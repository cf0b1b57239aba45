"""What a checkpoint is: read safely, written atomically, rebuilt into a model, and how that model is sampled."""
