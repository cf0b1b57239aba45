"""Callbacks that draw while training goes on."""
