"""Samplers over any process and denoiser, and guidance."""
