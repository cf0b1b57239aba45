"""The run: directory, configuration, checkpoints, loggers."""
