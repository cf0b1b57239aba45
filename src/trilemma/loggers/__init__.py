"""CSV, TensorBoard and wandb."""
