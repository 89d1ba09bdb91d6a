"""Which token comes next: temperature, top-k and top-p as pure functions of logits.

Every setting is an array with one value a row, so that rows of one batch may differ, and changing a
value compiles nothing. B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

_Numbers = np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn; the filters apply in this order.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token, 1 is the model's own
            distribution.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Of these, keep the fewest likeliest whose probabilities sum to p; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be at least 0; got {self.temperature}. 0 takes the likeliest "
                "token, 1 is the model's own distribution."
            )
        if self.top_k < 0:
            raise ValueError(f"`top_k` must be at least 0; got {self.top_k}. 0 keeps all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1]; got {self.top_p}. 1 keeps all tokens.")


class Settings(NamedTuple):
    """A `SamplingConfig` for every row, as arrays."""

    temperature: Float[_Numbers, " b"]
    top_k: Int[_Numbers, " b"]
    top_p: Float[_Numbers, " b"]


def settings_of(configs: Sequence[SamplingConfig]) -> Settings:
    """Put the configurations of rows into arrays."""
    return Settings(
        np.array([config.temperature for config in configs], np.float32),
        np.array([config.top_k for config in configs], np.int32),
        np.array([config.top_p for config in configs], np.float32),
    )


def sample_tokens(
    logits: Float[Array, "b v"], keys: Key[Array, " b"], settings: Settings
) -> Int[Array, " b"]:
    r"""Draw a token a row from $\mathrm{softmax}(l / \tau)$ over the tokens that the filters keep.

    By inversion: the first token whose cumulative probability exceeds a uniform number. That takes
    one number a row, from the row's own key: other rows change nothing, and a number for each of
    the V tokens would cost more than all the rest.

    Args:
        logits: Unnormalised log-probabilities l; -inf is never drawn.
        keys: One a row.
        settings: Of the rows.
    """
    heat = settings.temperature[:, None]
    scaled = logits.astype(jnp.float32) / jnp.where(heat > 0, heat, 1)
    kept = jnp.where(kept_tokens(scaled, settings), scaled, -jnp.inf)
    cumulative = jnp.cumsum(jax.nn.softmax(kept, axis=-1), axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)[:, None]
    drawn = jnp.sum(cumulative <= uniform * cumulative[:, -1:], axis=-1)
    return jnp.where(heat[:, 0] > 0, drawn, jnp.argmax(scaled, axis=-1))


def kept_tokens(logits: Float[Array, "b v"], settings: Settings) -> Bool[Array, "b v"]:
    """Say which tokens top-k, and then top-p, keep; the likeliest is always among them.

    A token that is as likely as the last one kept is kept too.

    Args:
        logits: After the temperature.
        settings: Of the rows; the temperature is not read.

    Reference: top-k: Fan et al., arXiv:1805.04833, section 5; top-p: Holtzman et al.,
        arXiv:1904.09751, eq. 2 and 3.
    """
    top_k, top_p = settings.top_k[:, None], settings.top_p[:, None]

    def likeliest_k() -> Bool[Array, "b v"]:
        return _fewest(logits, lambda some: jnp.sum(some, -1, keepdims=True) >= top_k)

    def likeliest_p(kept: Bool[Array, "b v"]) -> Bool[Array, "b v"]:
        probabilities = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)
        mass = lambda some: jnp.sum(jnp.where(some, probabilities, 0), -1, keepdims=True)  # noqa: E731
        return kept & _fewest(logits, lambda some: mass(some) >= top_p)

    # Most batches want no filter, and should not pay for one.
    kept = jnp.ones(logits.shape, bool)
    kept = jax.lax.cond(jnp.any(top_k > 0), likeliest_k, lambda: kept) | (top_k == 0)
    nucleus = jax.lax.cond(jnp.any(top_p < 1), likeliest_p, lambda kept: kept, kept)
    return jnp.where(top_p < 1, nucleus, kept)


def _fewest(
    logits: Float[Array, "b v"], enough: Callable[[Bool[Array, "b v"]], Bool[Array, "b 1"]]
) -> Bool[Array, "b v"]:
    """Find the smallest set {v: logit_v >= threshold} that is enough.

    The threshold is built bit by bit from the top: 32 sums over V instead of a sort, and exact.
    """
    ranks = _ranks(logits)

    def try_bit(i: Array, threshold: UInt32[Array, "b 1"]) -> UInt32[Array, "b 1"]:
        higher = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(ranks >= higher), higher, threshold)

    lowest = jnp.zeros((logits.shape[0], 1), jnp.uint32)
    return ranks >= jax.lax.fori_loop(0, 32, try_bit, lowest)


def _ranks(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Map float32 to unsigned integers in the same order."""
    x = jnp.where(x == 0, 0.0, x)  # -0.0 is as large as 0.0
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)
