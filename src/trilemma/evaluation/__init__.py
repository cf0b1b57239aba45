"""Feature extractors, metrics and the trilemma report."""
