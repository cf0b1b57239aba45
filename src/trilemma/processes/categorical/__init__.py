"""Markov chains on tokens."""
