r"""Low-rank adapters: a frozen kernel W and a small trained change, $W + s A B$.

R rank; W is [*in, *out], A is [*in, R] and B is [R, *out].
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.products import multiply

Target = Literal["all", "query", "key", "value", "output", "gate", "up", "down"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    r"""Which kernels are adapted, and how.

    On all kernels of GPT-2 124M rank 8 trains 1.1 % as many parameters as the model has, and rank
    15 is the last below 2 %.

    Attributes:
        rank: R, of the change of each kernel; 0 adapts nothing, and all parameters train.
        alpha: The change is multiplied by alpha / rank, so that other ranks need no other rate.
        targets: Which projections: query, key, value and output of the attention, gate, up and down
            of the MLP; all is every one that the model has.
        rslora: Whether the factor is alpha / √rank instead, under which high ranks learn more.
        dora: Whether the length of each column of a kernel is trained apart from its direction.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Target, ...] = ("all",)
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.rank < 0:
            raise ValueError(f"`rank` must not be negative; got {self.rank}. 0 adapts nothing.")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"`alpha` must be above 0 and finite; got {self.alpha}. Try 16.")
        if not self.targets or ("all" in self.targets and len(self.targets) > 1):
            raise ValueError(
                f"`targets` must be all, or some of the projections; got {self.targets}. "
                "Name them, or give all by itself."
            )


class Lora(nnx.Module):
    r"""The change of one kernel: $y = xW + s (xA)B$.

    With a magnitude m (DoRA), one number an output, it is $W' = m (W + sAB) / \lVert W + sAB
    \rVert$, the norm over the inputs of each output; no gradient flows through the norm.

    Attributes:
        a: A, in float32.
        b: B, in float32; zero at first, so that nothing is changed.
        magnitude: m, of shape `out`, or None.
        alpha: $\alpha$, of which s is made.
        rslora: Whether $s = \alpha / \sqrt{R}$ instead of $\alpha / R$.

    Reference: Hu et al. (LoRA), arXiv:2106.09685, eq. 3 and section 4.1; Kalajdzievski (rsLoRA),
        arXiv:2312.03732, theorem 3.2; Liu et al. (DoRA), arXiv:2402.09353, eqs. 5 and 11. Dropout
        of x is left out.
    """

    def __init__(
        self,
        a: Float[Array, "..."],
        b: Float[Array, "..."],
        magnitude: Float[Array, "..."] | None = None,
        *,
        alpha: float,
        rslora: bool = False,
    ):
        """Hold the arrays."""
        self.a = nnx.Param(a)
        self.b = nnx.Param(b)
        self.magnitude = nnx.data(None) if magnitude is None else nnx.Param(magnitude)
        self.alpha = alpha
        self.rslora = rslora

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-1]

    @property
    def scale(self) -> float:
        """The factor s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def change(self, rows: Float[Array, "n i"]) -> Float[Array, "n o"]:
        """Compute $s (xA)B$ in the type of x."""
        down = self.a[...].reshape(-1, self.rank).astype(rows.dtype)
        up = self.b[...].reshape(self.rank, -1).astype(rows.dtype)
        return self.scale * multiply(multiply(rows, down), up)

    def rescale(self, kernel: Float[Array, "i o"]) -> Float[Array, " o"]:
        r"""Compute $m / \lVert W + sAB \rVert$ in float32; the norm counts as a constant.

        Args:
            kernel: W.
        """
        assert self.magnitude is not None
        length = jax.lax.stop_gradient(_column_lengths(self._sum(kernel)))
        return self.magnitude[...].reshape(-1) / jnp.where(length > 0, length, 1)

    def merged(self, kernel: Float[Array, "i o"]) -> Float[Array, "i o"]:
        """Compute W', in float32.

        Args:
            kernel: W.
        """
        whole = self._sum(kernel)
        return whole if self.magnitude is None else whole * self.rescale(kernel)

    def _sum(self, kernel: Float[Array, "i o"]) -> Float[Array, "i o"]:
        a, b = self.a[...].reshape(-1, self.rank), self.b[...].reshape(self.rank, -1)
        # On a TPU products of float32 are of bfloat16 unless they are asked not to be.
        product = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
        return kernel.astype(jnp.float32) + self.scale * product.astype(jnp.float32)


def init_lora(
    config: LoraConfig, kernel: Float[Array, "..."], inputs: int, key: PRNGKeyArray
) -> Lora:
    r"""Draw an adapter: A uniform in $\pm 1 / \sqrt{n_{in}}$, B zero, m the lengths of W's columns.

    The width is PEFT's: Kaiming's uniform for a leaky rectifier of slope $\sqrt{5}$.

    Args:
        config: Its rank, factor and kind.
        kernel: W.
        inputs: How many of the first axes of W are its input.
        key: Of A.

    Reference: He et al., arXiv:1502.01852, eq. 15.
    """
    in_shape, out_shape = kernel.shape[:inputs], kernel.shape[inputs:]
    bound = math.prod(in_shape) ** -0.5
    a = jax.random.uniform(key, (*in_shape, config.rank), jnp.float32, -bound, bound)
    b = jnp.zeros((config.rank, *out_shape), jnp.float32)
    magnitude: Any = None
    if config.dora:
        columns = kernel.astype(jnp.float32).reshape(math.prod(in_shape), -1)
        magnitude = _column_lengths(columns).reshape(out_shape)
    return Lora(a, b, magnitude, alpha=config.alpha, rslora=config.rslora)


def _column_lengths(kernel: Float[Array, "i o"]) -> Float[Array, " o"]:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))
