"""The commands, one file each, and the conversion of errors to one line and an exit status."""
