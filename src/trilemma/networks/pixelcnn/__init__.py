"""Convolutional networks in which a pixel sees those above it and to its left, and no other."""
