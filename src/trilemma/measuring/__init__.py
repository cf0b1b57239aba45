"""What `evaluate.py` does with a loaded checkpoint: each setting, part by part."""
