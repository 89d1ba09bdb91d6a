"""Generative AI in JAX: language and image models, as pure functions over pytrees."""

__version__ = "0.1.0"
