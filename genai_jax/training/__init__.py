"""State, step, optimizers, loop and checkpoints; knows no model and no objective."""
