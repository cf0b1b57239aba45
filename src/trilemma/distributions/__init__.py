"""Distributions of data given a network's output, to sample from and to score with."""
