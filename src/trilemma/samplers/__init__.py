"""From noise to data, over any process and denoiser; and guidance."""
