"""Numbers that rows bring with them, as metrics of a step: rewards, lengths, what was left out."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from genai_jax.types import Batch, Objective, Term, Terms

PREFIX = "metrics/"
"""Fields of a batch that begin so are means over the rows whose `counts/<name>` is 1, or all."""


@dataclasses.dataclass(frozen=True)
class WithRowMetrics:
    """An objective that also reports what its rows bring with them.

    Attributes:
        objective: What is trained on.
    """

    objective: Objective

    def __call__(self, model: Any, batch: Batch, context: Any = None) -> Terms:
        """Compute the terms of the objective, and a metric for every field `metrics/<name>`."""
        terms = dict(self.objective(model, batch, context))
        for field, values in batch.items():
            if field.startswith(PREFIX):
                name = field.removeprefix(PREFIX)
                counted = batch.get(f"counts/{name}", jnp.ones(len(values)))
                terms[name] = Term(jnp.sum(counted * values), jnp.sum(counted), 0.0)
        return terms
