"""Gaussian noise on continuous codes."""
