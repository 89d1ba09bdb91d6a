r"""Over-optimisation of a proxy reward: what is gained in the gold one, by distance from the start.

Distance is $d = \sqrt{KL(\pi \| \pi_{init})}$. P prompts, N answers to each.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Form = Literal["best of n", "reinforcement learning"]


def best_of_n_weights(count: int, n: int) -> Float[np.ndarray, " n"]:
    r"""Compute how likely each of N answers, worst first, is the best of n drawn without return.

    $w_i = \binom{i - 1}{n - 1} / \binom{N}{n}$ for i = 1 ... N.

    Args:
        count: N.
        n: From 1 to N.
    """
    if not 1 <= n <= count:
        raise ValueError(f"the best of n needs 1 <= n <= N; got n = {n} of N = {count}.")
    weights = np.zeros(count)
    weights[-1] = n / count
    for i in range(count - 1, n - 1, -1):  # w_i = w_{i + 1} (i - n + 1) / i, i counted from 1
        weights[i - 1] = weights[i] * (i - n + 1) / i
    return weights


def best_of_n_estimates(
    proxy: Float[np.ndarray, "p n"], reward: Float[np.ndarray, "p n"], n: int
) -> Float[np.ndarray, " p"]:
    r"""Estimate the reward of the answer that the proxy likes best of n, without bias.

    The mean over all choices of n out of the N answers of the reward of the one with the highest
    proxy; among equal proxies each is as likely. With `reward` the proxy itself, how high it gets.

    Args:
        proxy: What chooses.
        reward: What is measured.
        n: From 1 to N.

    Returns:
        Of each prompt.

    Reference: Nakano et al., arXiv:2112.09332, appendix I, as Gao et al., arXiv:2210.10760, use it.
    """
    weights = best_of_n_weights(proxy.shape[1], n)
    found = np.zeros(len(proxy))
    for row, (chooses, measured) in enumerate(zip(proxy, reward, strict=True)):
        _, level = np.unique(chooses, return_inverse=True)
        share = np.bincount(level, weights[np.argsort(np.argsort(chooses, kind="stable"))])
        mean = np.bincount(level, measured) / np.bincount(level)
        found[row] = share @ mean
    return found


class Fitted(NamedTuple):
    r"""A curve of rewards by distance.

    Attributes:
        form: Best of n, $R(d) = d (\alpha - \beta d)$, or reinforcement learning,
            $R(d) = d (\alpha - \beta \log d)$.
        alpha: α, gain per distance at the start (for reinforcement learning, at d = 1).
        beta: β, by how much that falls.
        alpha_error: Standard error of α.
        beta_error: Of β.
        residual: Root of the mean squared residual, with two degrees of freedom less.
    """

    form: Form
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    residual: float

    def __call__(self, distance: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
        """Compute the gain at distances, at least 0."""
        first, second = _terms(self.form, distance)
        return self.alpha * first + self.beta * second

    @property
    def peak(self) -> float:
        r"""The distance of the highest gain, $\alpha / 2 \beta$ or $e^{\alpha / \beta - 1}$.

        Infinite where the curve never falls.
        """
        if self.beta <= 0:
            return float("inf")
        if self.form == "best of n":
            return max(self.alpha / (2 * self.beta), 0.0)
        return float(np.exp(np.minimum(self.alpha / self.beta - 1, 700.0)))

    def __str__(self) -> str:
        """Say the coefficients."""
        return (
            f"alpha = {self.alpha:.3f} ± {self.alpha_error:.3f}, "
            f"beta = {self.beta:.3f} ± {self.beta_error:.3f}"
        )


def fit_gains(form: Form, kl: Float[np.ndarray, " k"], gains: Float[np.ndarray, " k"]) -> Fitted:
    r"""Fit the curve of a form by least squares; α and β enter linearly.

    Args:
        form: Which.
        kl: Divergences from the initial policy, in nats an answer; those below 0, which estimates
            may be, count as 0.
        gains: Rewards there, minus that of the initial policy.

    Returns:
        The coefficients. Their errors are those of independent residuals of one width, which the
        points of one run, or of one set of answers, are not: they are a lower bound.

    Raises:
        ValueError: If fewer than three points are away from 0.

    Reference: Gao, Schulman and Hilton, arXiv:2210.10760, eq. 1.
    """
    distance = np.sqrt(np.maximum(kl, 0.0))
    used = distance > 0
    freedom = int(used.sum()) - 2
    if freedom < 1:
        raise ValueError(
            f"to fit two coefficients there must be three points away from 0; got {freedom + 2}."
        )
    terms = np.stack(_terms(form, distance[used]), axis=1)
    solution, _, rank, _ = np.linalg.lstsq(terms, gains[used], rcond=None)
    if rank < 2:
        raise ValueError("to fit two coefficients there must be different distances; got one.")
    residuals = gains[used] - terms @ solution
    variance = residuals @ residuals / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(terms.T @ terms)))
    return Fitted(form, *map(float, (*solution, *errors, np.sqrt(variance))))


def _terms(
    form: Form, distance: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Compute what α and β are multiplied with."""
    if form == "best of n":
        return distance, -np.square(distance)
    return distance, -distance * np.log(np.where(distance > 0, distance, 1.0))


class Curve(NamedTuple):
    """Rewards of policies that went away from the initial one, on one way.

    Attributes:
        name: Of the way.
        form: Of its fit.
        kl: Divergence from the initial policy, in nats an answer.
        gold: Gold reward, minus that of the initial policy.
        proxy: The same of the proxy.
    """

    name: str
    form: Form
    kl: Float[np.ndarray, " k"]
    gold: Float[np.ndarray, " k"]
    proxy: Float[np.ndarray, " k"]


def fit_together(curves: Sequence[Curve]) -> Fitted:
    """Fit the gold reward of all curves of one form as one curve; see `fit_gains`."""
    kl = np.concatenate([curve.kl for curve in curves])
    return fit_gains(curves[0].form, kl, np.concatenate([curve.gold for curve in curves]))
