"""Rotary position embeddings and the ways to stretch them over longer contexts.

The rotation is of the half-split kind (element i is paired with element i + H/2), as in the weights
that are published for Llama, Mistral, Qwen and Gemma.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Frequencies of the rotary embedding.

    Attributes:
        theta: Base of the geometric series of wavelengths.
        scaling: How to stretch the context: none; linear (positions divided by `factor`); llama3
            (long wavelengths divided, short ones kept); yarn (the same by rotations, with a
            temperature on the attention logits).
        factor: Ratio of the new context length to the original one.
        original_length: Context length of pre-training, in tokens (llama3, yarn).
        low_freq_factor: Wavelengths over original_length / low_freq_factor are stretched in full
            (llama3).
        high_freq_factor: Wavelengths under original_length / high_freq_factor are kept (llama3).
        beta_fast: Dimensions that turn more often than this over the original length are kept
            (yarn).
        beta_slow: Dimensions that turn less often than this are stretched in full (yarn).
        attention_factor: Factor on cos and sin (yarn); None is 0.1 ln(factor) + 1.
        truncate: Whether the bounds of yarn's ramp are rounded outwards to whole dimensions.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.theta <= 0:
            raise ValueError(f"`rope.theta` must be positive; got {self.theta}. Try 10000.")
        if self.factor < 1:
            raise ValueError(
                f"`rope.factor` is new length / original length and at least 1; got {self.factor}."
            )

    @property
    def magnitude(self) -> float:
        """The factor on cos and sin; its square is a temperature on the attention logits."""
        if self.scaling != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def rope_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    r"""Compute the angular frequencies in radians per token, in float64 on the host.

    $\omega_i = \theta^{-2i/H}$ for $i < H/2$, then stretched as `config.scaling` says.

    Args:
        config: Base and scaling.
        head_dim: H, even.

    Returns:
        Frequencies of shape [H/2].

    Raises:
        ValueError: If `head_dim` is odd.

    Reference: Su et al., "RoFormer", arXiv:2104.09864, eq. 15; linear: Chen et al.,
        arXiv:2306.15595, eq. 4; llama3: the Llama 3.1 release (Grattafiori et al.,
        arXiv:2407.21783, section 3.4.2, gives the aim, the released code the formula); yarn: Peng
        et al., arXiv:2309.00071, eqs. 17 to 23.
    """
    if head_dim % 2:
        raise ValueError(f"Rotary embeddings need an even `head_dim`; got {head_dim}.")
    omega = config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    stretched = omega / config.factor
    match config.scaling:
        case "none":
            return omega
        case "linear":
            return stretched
        case "llama3":
            turns = config.original_length * omega / (2 * np.pi)
            low, high = config.low_freq_factor, config.high_freq_factor
            keep = np.clip((turns - low) / (high - low), 0, 1)
        case "yarn":

            def dimension(turns: float) -> float:
                """Find the (fractional) dimension that turns so often over the original length."""
                ratio = config.original_length / (turns * 2 * math.pi)
                return head_dim * math.log(ratio) / (2 * math.log(config.theta))

            first, last = dimension(config.beta_fast), dimension(config.beta_slow)
            if config.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, head_dim - 1)
            ramp = (np.arange(head_dim // 2) - first) / max(last - first, 0.001)
            keep = 1 - np.clip(ramp, 0, 1)
    return keep * omega + (1 - keep) * stretched


def rope_tables(
    config: RopeConfig, head_dim: int, positions: Int[Array, "b t"]
) -> tuple[Float[Array, "b t 1 half"], Float[Array, "b t 1 half"]]:
    """Compute cos and sin of position times frequency, in float32, ready to meet [b, t, n, h].

    Args:
        config: Base and scaling.
        head_dim: H, even.
        positions: Tokens since the start of the document.

    Returns:
        cos and sin, each scaled by `config.magnitude`.
    """
    omega = jnp.asarray(rope_frequencies(config, head_dim), jnp.float32)
    angles = positions.astype(jnp.float32)[:, :, None, None] * omega
    return jnp.cos(angles) * config.magnitude, jnp.sin(angles) * config.magnitude


def apply_rope(
    x: Float[Array, "b t n h"],
    tables: tuple[Float[Array, "#b t 1 half"], Float[Array, "#b t 1 half"]],
) -> Float[Array, "b t n h"]:
    r"""Rotate each pair $(x_i, x_{i+H/2})$ by its angle, in float32.

    $x'_i = x_i \cos - x_{i+H/2} \sin$ and $x'_{i+H/2} = x_{i+H/2} \cos + x_i \sin$.

    Returns:
        The rotated vectors, in the dtype of `x`.

    Reference: Su et al., "RoFormer", arXiv:2104.09864, eq. 34, with half-split pairs.
    """
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
