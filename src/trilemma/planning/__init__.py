"""What `debug=plan` says: memory, speed and scaling of a run that has not started."""
