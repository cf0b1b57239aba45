"""Several processes: their ranks, how they share a model and a batch, and how a signal reaches all of them."""
