"""Callbacks that draw pictures during training."""
