"""Plots: of points with their front, by matplotlib; of curves, by hand, for what is drawn while training goes on."""
