"""Samplers of continuous codes."""
