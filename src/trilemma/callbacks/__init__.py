"""Callbacks: averages, checkpoints, pictures, monitors."""
