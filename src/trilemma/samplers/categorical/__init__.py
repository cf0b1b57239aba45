"""Samplers of tokens."""
