"""The types that every room of the house shares: batches, terms and metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Batch = dict[str, Any]
"""Arrays by name, each with the batch as its leading axis."""


class Term(NamedTuple):
    r"""One term of a loss, or a metric, as a sum and the weight that it is divided by.

    The loss of a step is $\sum_k c_k \cdot \mathrm{sum}_k / \mathrm{weight}_k$. Sums and weights
    add over microbatches, devices and hosts, so that the quotient is exact however a batch is cut.

    Attributes:
        sum: The total over whatever is counted (nats, correct tokens, ...), a scalar.
        weight: How much was counted; a function of the batch alone, never of the model.
        coefficient: $c_k$; 0 makes the term a metric that the loss does not feel.
    """

    sum: Array
    weight: Array
    coefficient: float = 1.0


Terms = dict[str, Term]
Metrics = dict[str, tuple[Array, Array]]
"""Scalars by name, as (sum, weight)."""

Objective = Callable[[Any, Batch, Any], Terms]
"""`(model, batch, context) -> Terms`; in training the batch carries for each row a PRNG key as
`key`, as `stratified` a number in [0, 1), evenly spread over the global batch, as `step` the number
of completed steps and, where a step has several updates, as `update` which of them it is for."""
