"""Images to feature vectors: the shipped classifiers, scripts, and the cache of real images."""
