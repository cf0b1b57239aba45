"""What is drawn: grids, trajectories, curves, pages."""
