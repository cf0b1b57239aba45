"""What a data set is: splits, batches, and the loader."""
