"""The codec of a two-stage model: found or trained, its codes computed once and kept in shards."""
