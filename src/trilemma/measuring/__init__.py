"""What `evaluate.py` does with a loaded checkpoint: measure each setting, part by part."""
