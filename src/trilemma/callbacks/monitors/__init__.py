"""Callbacks that watch one number each, and warn or stop where training goes wrong."""
