"""One file, one family, one LightningModule."""
