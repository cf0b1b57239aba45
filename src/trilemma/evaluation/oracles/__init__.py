"""Cases whose answers are known in advance: a metric or a sampler proves itself on them."""
