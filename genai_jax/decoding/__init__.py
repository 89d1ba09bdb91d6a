"""Token-by-token generation: cache, sampling, the jitted loop."""
