"""A tile of rows through all layers in shared memory: what `resident` and `fused` are made of."""
