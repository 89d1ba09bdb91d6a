"""Diffusion: the noise process, what a network predicts of it, samplers, guidance, likelihood."""
