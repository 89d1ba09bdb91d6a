r"""Best-of-n and rejection sampling: a better policy by choosing among answers, without training.

P prompts, N answers to each, K outcomes of a finite set.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from genai_jax.types import PyTree


def best_of_n(
    scores: Float[Array, "p n"], counted: Bool[Array, "p n"] | None = None
) -> Int[Array, " p"]:
    """Choose the answer of the highest score; of equal ones the first, as of none that counts.

    Args:
        scores: Of any value where not counted.
        counted: Which answers may be chosen; None: those of a score that is a number.
    """
    counted = ~jnp.isnan(scores) if counted is None else counted
    return jnp.argmax(jnp.where(counted, scores, -jnp.inf), axis=-1)


def take_answers(answers: PyTree, chosen: Int[Array, " p"]) -> PyTree:
    """Take the chosen answer to each prompt out of arrays [P, N, ...]: [P, ...].

    Args:
        answers: Arrays of answers, such as rows of tokens.
        chosen: Number of the answer, below N.
    """
    return jax.tree.map(lambda x: x[jnp.arange(chosen.shape[0]), chosen], answers)


def accepted(
    scores: Float[Array, "p n"],
    key: PRNGKeyArray,
    *,
    beta: float,
    highest: float | Float[Array, "p 1"] | None = None,
) -> Bool[Array, "p n"]:
    r"""Accept draws of the reference so that those accepted are draws of the optimum.

    Each with probability $e^{(r - r_{max}) / \beta}$, so that what is accepted is distributed as
    $\pi^* \propto \pi_{ref} e^{r / \beta}$.

    Args:
        scores: r of answers that the reference wrote; NaN is never accepted.
        key: For the draws.
        beta: β, in score per nat, above 0.
        highest: $r_{max}$, a bound of the scores to a prompt; None takes the highest of these,
            which is exact in the limit of many.

    Reference: Liu et al. (RSO), arXiv:2309.06657, algorithm 1 with the draws independent.
    """
    most = jnp.nanmax(scores, -1, keepdims=True) if highest is None else highest
    return jnp.log(jax.random.uniform(key, scores.shape)) < (scores - most) / beta


def kl_bound(n: int) -> float:
    r"""Compute $\log n - (n - 1) / n$, in nats: a bound of $KL(\pi_{bon} \| \pi)$.

    It is met where scores are distinct and every answer is unlikely.

    Args:
        n: Answers that one is chosen of, at least 1.

    Reference: Stiennon et al., arXiv:2009.01325, appendix G.3; that it is a bound, not an equality:
        Beirami et al., arXiv:2401.01879.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs an answer to choose; got n = {n}.")
    return math.log(n) - (n - 1) / n


def best_of_n_distribution(probabilities: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    r"""Compute the distribution of the best of n draws from a finite set, in float64.

    $\pi_{bon}(y) = \frac{\pi(y)}{\pi(r = r_y)} (P(r \le r_y)^n - P(r < r_y)^n)$: among equal scores
    the first draw is taken, which is any of them by its probability.

    Args:
        probabilities: π, [K], of sum 1.
        scores: r, [K].
        n: Draws, at least 1.
    """
    if n < 1:
        raise ValueError(f"best-of-n needs an answer to choose; got n = {n}.")
    p, r = np.asarray(probabilities, np.float64), np.asarray(scores, np.float64)
    _, level = np.unique(r, return_inverse=True)
    tied = np.bincount(level, weights=p)
    up_to = np.cumsum(tied)
    won = up_to**n - np.concatenate([[0.0], up_to[:-1]]) ** n
    return p * (won / np.where(tied > 0, tied, 1.0))[level]


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    r"""Compute $KL(p \| q) = \sum_y p_y \log(p_y / q_y)$ in nats, in float64.

    Args:
        p: [K], of sum 1.
        q: [K], above 0 wherever p is.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))
