"""Conditions of a model: labels, text, and the null condition."""
