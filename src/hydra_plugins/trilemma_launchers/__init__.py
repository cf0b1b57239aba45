"""Launchers whose points may fail without each other; each is there where the one that it builds on is installed."""
