"""The feed-forward half of a transformer block, plain or gated."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.linear import Linear

Activation = Literal["gelu", "gelu_exact", "silu", "relu2"]


def activate(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """Apply a pointwise nonlinearity.

    `gelu` is the tanh approximation of GPT-2 and Gemma, `gelu_exact` the one with erf (Hendrycks
    and Gimpel, arXiv:1606.08415, section 2); `relu2` is the squared rectifier (So et al.,
    arXiv:2109.08668, section 4).
    """
    match activation:
        case "gelu":
            return jax.nn.gelu(x, approximate=True)
        case "gelu_exact":
            # By erf: jax.nn.gelu's erfc is a branch more, and 2 % of a small model's step on CPU.
            return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))
        case "silu":
            return jax.nn.silu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))


class MLP(nnx.Module):
    r"""$\phi(xW_\mathrm{up})W_\mathrm{down}$, or gated $(\phi(xW_g) \odot xW_u)W_\mathrm{down}$.

    Gated with SiLU it is SwiGLU, with GELU it is GeGLU.

    Reference: Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, eqs. 5 and 6.
    """

    def __init__(
        self,
        embed_dim: int,
        mlp_dim: int,
        key: PRNGKeyArray,
        *,
        activation: Activation,
        gated: bool,
        use_bias: bool,
        init_std: float,
        output_std: float,
        param_dtype: jax.typing.DTypeLike,
    ):
        """Draw the kernels; `output_std` is the width of the projection back to the residual."""
        gate_key, up_key, down_key = jax.random.split(key, 3)
        inner: dict[str, Any] = {
            "use_bias": use_bias,
            "init_std": init_std,
            "param_dtype": param_dtype,
        }
        self.gate = Linear((embed_dim,), (mlp_dim,), gate_key, **inner) if gated else None
        self.up = Linear((embed_dim,), (mlp_dim,), up_key, **inner)
        self.down = Linear((mlp_dim,), (embed_dim,), down_key, **(inner | {"init_std": output_std}))
        self.activation: Activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Map each token by itself."""
        if self.gate is None:
            return self.down(activate(self.up(x), self.activation))
        return self.down(activate(self.gate(x), self.activation) * self.up(x))
