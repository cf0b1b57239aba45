"""The codec of a two-stage model: found or trained; its codes are computed once and stored in shards."""
