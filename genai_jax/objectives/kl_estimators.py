r"""Estimators of the divergence between two policies from what one of them drew.

All take $d = \log \pi(y) - \log \pi_{ref}(y)$ of y drawn from π, and estimate
$KL(\pi \| \pi_{ref}) = E_\pi d$ in nats. As *values* all three are right (k2 to second order). As
*losses*, differentiated by the parameters of π while the draws stay, they are three things:

| loss | expected gradient |
| --- | --- |
| k1 | 0 |
| k2 | that of $KL(\pi \| \pi_{ref})$ |
| k3 | that of $KL(\pi_{ref} \| \pi)$, the other direction |
| $\frac{\pi}{\pi_{old}}$ k3 | that of $KL(\pi \| \pi_{ref})$ |

Reference: Schulman, "Approximating KL Divergence" (2020); gradients: Tang and Munos,
    arXiv:2506.09477.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Beyond e^20 a ratio says only that it is large, and its products would be no numbers.
_MAX_LOG_RATIO = 20.0


def bounded_exp(log_ratio: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Compute a ratio of probabilities, held within e^±20."""
    return jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def kl_k1(log_ratio: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Estimate by d: unbiased, of either sign."""
    return log_ratio


def kl_k2(log_ratio: Float[Array, "*s"]) -> Float[Array, "*s"]:
    r"""Estimate by $d^2 / 2$: biased, of low variance."""
    return 0.5 * jnp.square(log_ratio)


def kl_k3(log_ratio: Float[Array, "*s"]) -> Float[Array, "*s"]:
    r"""Estimate by $e^{-d} - 1 + d$: unbiased and never negative."""
    return bounded_exp(-log_ratio) - 1 + log_ratio
