"""Whole models, with what belongs to one model: presets, sharding rules, optimizer groups."""
