"""Counts and formulas behind a plan."""
