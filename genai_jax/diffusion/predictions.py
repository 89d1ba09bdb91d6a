r"""What a network is trained to say of $x_t = \alpha x_0 + \sigma \epsilon$, and its conversions.

Every target is a mixture $y = a\,x_0 + b\,\epsilon$ whose coefficients depend on the noise level
alone. With $x_t$ that makes two equations for $x_0$ and $\epsilon$; solving them is the only
conversion there is.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Target = Literal["eps", "x_0", "v", "flow", "edm"]


class Prediction(NamedTuple):
    """What is known of the clean image, given a noisy one.

    Attributes:
        x_0: Estimate of its mean.
        log_variance: Logarithm of the variance of a reverse step, as a fraction v of the way from
            its lower bound (0) to its upper bound (1), where the network learns it; else None.
    """

    x_0: Float[Array, "b ..."]
    log_variance: Float[Array, "b ..."] | None = None


def like(level: Shaped[Array, "*b"], x: Shaped[Array, "b ..."]) -> Shaped[Array, "..."]:
    """Give a scalar, or one number a row, the axes that it needs to meet `x`."""
    return level.reshape(*level.shape, *(1,) * (x.ndim - level.ndim)) if level.ndim else level


def coefficients(
    target: Target,
    alpha: Float[Array, "*b"],
    sigma: Float[Array, "*b"],
    sigma_data: float = 1.0,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    r"""Say what a target is made of: a and b of $y = a\,x_0 + b\,\epsilon$.

    `eps` and `x_0` are what they say; `v` is $\alpha\epsilon - \sigma x_0$; `flow` is the velocity
    $\epsilon - x_0$ of the straight line; `edm` is the raw output F of EDM's preconditioned
    network, $\hat x_0 = c_\mathrm{skip} x + c_\mathrm{out} F$, which solved for F is
    $(\sigma x_0 / \sigma_d - \sigma_d \alpha \epsilon) / \sqrt{\sigma^2 + \alpha^2 \sigma_d^2}$:
    with $\sigma_d = 1$ and a preserved variance it is $-v$.

    Args:
        target: Which.
        alpha: Of the noise level.
        sigma: Of the noise level.
        sigma_data: $\sigma_d$, standard deviation of the data, of `edm`.

    Reference: eps: Ho et al., arXiv:2006.11239, eq. 12; v: Salimans and Ho, arXiv:2202.00512,
        appendix D; flow: Liu et al., arXiv:2209.03003, eq. 1; edm: Karras et al.,
        arXiv:2206.00364, eq. 7 and table 1.
    """
    one, zero = jnp.ones_like(alpha), jnp.zeros_like(alpha)
    match target:
        case "eps":
            return zero, one
        case "x_0":
            return one, zero
        case "v":
            return -sigma, alpha
        case "flow":
            return -one, one
        case "edm":
            norm = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
            return sigma / sigma_data / norm, -sigma_data * alpha / norm


def make_target(
    target: Target,
    x_0: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    alpha: Float[Array, "*b"],
    sigma: Float[Array, "*b"],
    sigma_data: float = 1.0,
) -> Float[Array, "b ..."]:
    r"""Compute what the network should say: $a\,x_0 + b\,\epsilon$."""
    a, b = coefficients(target, alpha, sigma, sigma_data)
    return like(a, x_0) * x_0 + like(b, x_0) * eps


def solve(
    target: Target,
    output: Float[Array, "b ..."],
    x_t: Float[Array, "b ..."],
    alpha: Float[Array, "*b"],
    sigma: Float[Array, "*b"],
    sigma_data: float = 1.0,
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    r"""Solve $y = a x_0 + b\epsilon$ and $x_t = \alpha x_0 + \sigma\epsilon$ for both.

    $x_0 = (b x_t - \sigma y) / (\alpha b - \sigma a)$ and
    $\epsilon = (\alpha y - a x_t) / (\alpha b - \sigma a)$.

    Returns:
        $x_0$ and $\epsilon$. `eps` says nothing of $x_0$ where alpha is 0, nor `x_0` of
        $\epsilon$ where sigma is 0: these are not finite.
    """
    a, b = coefficients(target, alpha, sigma, sigma_data)
    determinant = alpha * b - sigma * a
    x_0 = like(b / determinant, x_t) * x_t - like(sigma / determinant, x_t) * output
    eps = like(alpha / determinant, x_t) * output - like(a / determinant, x_t) * x_t
    return x_0, eps


def squared_error_ratio(
    target: Target, alpha: Float[Array, "*b"], sigma: Float[Array, "*b"], sigma_data: float = 1.0
) -> Float[Array, "*b"]:
    r"""Compute $\|\Delta x_0\|^2 / \|\Delta y\|^2 = \sigma^2 / (\alpha b - \sigma a)^2$.

    One factor turns a weight on errors of $x_0$ into one on errors of any target.
    """
    a, b = coefficients(target, alpha, sigma, sigma_data)
    return jnp.square(sigma / (alpha * b - sigma * a))


def input_scale(
    target: Target, alpha: Float[Array, "*b"], sigma: Float[Array, "*b"], sigma_data: float = 1.0
) -> Float[Array, "*b"]:
    r"""Compute what $x_t$ is multiplied by before the network sees it.

    For `edm` $(\sigma^2 + \alpha^2\sigma_d^2)^{-1/2}$, which makes its variance one
    (arXiv:2206.00364, table 1, $c_\mathrm{in}$, for any alpha); else 1.
    """
    if target != "edm":
        return jnp.ones_like(alpha)
    return 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
