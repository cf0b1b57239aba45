"""What happens around training: averages, checkpoints, pictures, monitors."""
