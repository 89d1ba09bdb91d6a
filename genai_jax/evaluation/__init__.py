"""Measurements on a trained model."""
