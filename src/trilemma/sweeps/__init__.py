"""Many runs from one command line: points, searches, launchers."""
