"""What happens around training: EMA, checkpoints, pictures, monitors."""
