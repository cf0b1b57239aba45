"""What noise does: pure probability on tensors."""
