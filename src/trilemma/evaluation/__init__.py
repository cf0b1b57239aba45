"""What is measured of samples and models, and how a measurement is kept."""
