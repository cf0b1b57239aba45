"""Parts that families share while they train: timesteps, weights, losses, optimisers."""
