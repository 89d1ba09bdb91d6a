"""Attention between the pixels of a small image, and from them to the tokens of a text.

B images, H rows, W columns, C channels; N heads of size D; S tokens of E elements.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from genai_jax.nn.attention import attend
from genai_jax.nn.group_norm import GroupNorm
from genai_jax.nn.linear import ALMOST_ZERO, Linear, scaled_std


class Text(NamedTuple):
    """What a text encoder says, of which pixels may read every token.

    Attributes:
        states: One vector a token.
        mask: True = a token, False = padding.
    """

    states: Float[Array, "b s e"]
    mask: Bool[Array, "b s"]


class ImageAttention(nnx.Module):
    r"""$x + W_o\,\mathrm{softmax}(QK^\top / \sqrt{D})\,V$ over all pixels of the normalised image.

    Keys and values of the text's tokens stand beside those of the pixels, in one softmax. $W_o$
    begins (almost) at zero, so that the block begins as the identity.

    Reference: Ho et al., arXiv:2006.11239, appendix B (one head); Dhariwal and Nichol,
        arXiv:2105.05233, section 3 (more heads); text: Nichol et al. (GLIDE), arXiv:2112.10741,
        section 3.1.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        key: PRNGKeyArray,
        *,
        groups: int,
        eps: float,
        text_dim: int = 0,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Draw the projections; `text_dim` is E, 0 without text."""
        if channels % num_heads:
            raise ValueError(
                f"The number of heads must divide the channels; got {num_heads} and {channels}."
            )
        size = channels // num_heads
        keys = jax.random.split(key, 6)
        inner: dict[str, Any] = {
            "init_std": scaled_std(channels, channels),
            "uniform": True,
            "use_bias": True,
            "param_dtype": param_dtype,
        }
        heads = (num_heads, size)
        self.norm = GroupNorm(channels, groups, eps=eps, param_dtype=param_dtype)
        self.query = Linear((channels,), heads, keys[0], **inner)
        self.key = Linear((channels,), heads, keys[1], **inner)
        self.value = Linear((channels,), heads, keys[2], **inner)
        almost_zero = inner | {"init_std": scaled_std(channels, channels, ALMOST_ZERO)}
        self.output = Linear(heads, (channels,), keys[3], **almost_zero)
        from_text = inner | {"init_std": scaled_std(max(text_dim, 1), channels)}
        told = text_dim > 0
        self.text_key = Linear((text_dim,), heads, keys[4], **from_text) if told else None
        self.text_value = Linear((text_dim,), heads, keys[5], **from_text) if told else None
        self.scale = 1 / math.sqrt(size)

    def __call__(
        self, x: Float[Array, "b h w c"], text: Text | None = None
    ) -> Float[Array, "b h w c"]:
        """Attend and add; computes in the dtype of `x`."""
        pixels = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        if self.query.out_shape[0] == 1 and text is None:
            mixed = self._by_one_head(pixels)
        else:
            mixed = self.output(self._by_heads(pixels, text))
        return x + mixed.reshape(x.shape)

    def _by_one_head(self, pixels: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        r"""Attend by one head, in half of the products: $W_qW_k^\top$ and $W_vW_o$ are one each.

        With the bias of the keys every logit of a query moves alike, so that it does not count; and
        as probabilities add up to one, the bias of the values passes through.
        """
        dtype = pixels.dtype
        query, key, value, output = (
            layer.kernel[...].reshape(pixels.shape[-1], -1)
            for layer in (self.query, self.key, self.value, self.output)
        )
        to_logits = (self.scale * query @ key.T).astype(dtype)
        asked = pixels @ to_logits + (self.scale * _bias(self.query) @ key.T).astype(dtype)
        logits = jnp.einsum("btc,bsc->bts", asked, pixels, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        mixed = jnp.einsum(
            "bts,bsc->btc", weights.astype(dtype), pixels, preferred_element_type=jnp.float32
        )
        said = (mixed / total).astype(dtype) @ (value @ output).astype(dtype)
        return said + (_bias(self.value) @ output + _bias(self.output)).astype(dtype)

    def _by_heads(
        self, pixels: Float[Array, "b t c"], text: Text | None
    ) -> Float[Array, "b t n d"]:
        """Attend by any number of heads, to a text as well."""
        query, key, value = self.query(pixels), self.key(pixels), self.value(pixels)
        mask = None
        if text is not None:
            if self.text_key is None or self.text_value is None:
                raise ValueError("This attention reads no text; got one. Build it with `text_dim`.")
            states = text.states.astype(pixels.dtype)
            key = jnp.concatenate([key, self.text_key(states)], axis=1)
            value = jnp.concatenate([value, self.text_value(states)], axis=1)
            seen = jnp.concatenate([jnp.ones(pixels.shape[:2], bool), text.mask], axis=1)
            mask = jnp.broadcast_to(seen[:, None], (*pixels.shape[:2], seen.shape[1]))
        # Dense: `blocked` has a rule for reverse mode alone, and likelihoods may want the forward.
        return attend(
            query,
            key,
            value,
            scale=self.scale,
            causal=False,
            attention_mask=mask,
            implementation="dense",
        )


def _bias(layer: Linear) -> Float[Array, " o"]:
    assert layer.bias is not None
    return layer.bias[...].reshape(-1)
