"""The data sets, one file each, and the file formats they lie in."""
