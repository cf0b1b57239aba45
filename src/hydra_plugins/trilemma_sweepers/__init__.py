"""Sweepers that Hydra finds by itself: in its namespace, and imported whenever it starts, so nothing here is slow to import."""
