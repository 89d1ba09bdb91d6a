"""Layers: small `nnx.Module`s that are used as immutable pytrees of parameters."""
