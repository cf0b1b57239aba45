"""Noise processes: pure probability on tensors."""
