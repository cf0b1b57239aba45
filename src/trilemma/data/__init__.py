"""LightningDataModules and readers."""
