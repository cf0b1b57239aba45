"""One file a command, and what turns an error into one line and an exit status."""
