"""Objectives: `(model, batch, context) -> Terms`."""
