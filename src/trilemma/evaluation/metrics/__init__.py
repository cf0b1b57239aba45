"""Metrics over features that are already extracted: plain functions, float64 inside, no network in sight."""
