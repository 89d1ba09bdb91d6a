"""The text encoder: what a caption says, a vector for every token and one for the whole.

It is the transformer of the language model, reading in both directions. Its sharding rules and
groups are those of the model that it is a part of.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.embeddings import Embedding
from genai_jax.nn.transformer import (
    Surroundings,
    apply_layers,
    make_layers,
    make_norm,
    make_rope,
)


class EncodedText(NamedTuple):
    """What a text encoder says.

    Attributes:
        states: One vector a token; zero at padding.
        pooled: Their mean over the tokens, float32.
        mask: True = a token, False = padding; at least one token a row.
    """

    states: Float[Array, "b l d"]
    pooled: Float[Array, "b d"]
    mask: Bool[Array, "b l"]


class TextEncoder(nnx.Module):
    """A transformer that reads captions in both directions, and never their padding.

    A caption is a row of token ids, filled up with the id 0, which nothing sees. Its first slot
    always counts: the empty caption, all padding, is the one token 0, whose vector in the table is
    learned and serves for nothing else. So guidance has its null condition, and every mean has
    something to be taken over.

    Attributes:
        config: Its shape.
        embedding: Token vectors, [V, D].
        position_embedding: Position vectors, [max_length, D], where positions are learned.
        layers: The blocks, as `nn.transformer.make_layers` holds them.
        final_norm: Normalises the states.
    """

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray):
        """Draw the parameters; the numbers do not depend on how the layers are stored."""
        if config.vocab_size < 1:
            raise ValueError("`vocab_size` must be known; got 0. Take that of the captions.")
        check_encoder(config)
        token_key, position_key, layer_key = jax.random.split(key, 3)

        def table(num: int, key: PRNGKeyArray) -> Embedding:
            return Embedding(
                num,
                config.embed_dim,
                key,
                init_std=config.init_std,
                param_dtype=config.param_dtype,
            )

        learned = config.positions == "learned"
        self.config = config
        self.embedding = table(config.vocab_size, token_key)
        self.position_embedding = table(config.max_length, position_key) if learned else None
        self.layers = make_layers(config, layer_key)
        self.final_norm = make_norm(config, config.embed_dim)

    def __call__(
        self, tokens: Int[Array, "b l"], key: Key[Array, " b"] | None = None
    ) -> EncodedText:
        """Read captions.

        Args:
            tokens: Token ids below V; 0 is padding.
            key: One key a row for dropout; None switches it off.

        Raises:
            ValueError: If a row is longer than the encoder's context.
        """
        config, length = self.config, tokens.shape[1]
        if not 1 <= length <= config.max_length:
            raise ValueError(
                f"A caption must have 1 to `max_length` slots; got {length} and "
                f"{config.max_length}. Shorten the captions or raise max_length."
            )
        mask = (tokens != 0).at[:, 0].set(True)
        positions = jnp.arange(length)[None]
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        around = Surroundings(
            make_rope(config, positions),
            segment_ids=mask.astype(jnp.int32),
            dropout_keys=None if config.dropout == config.attention_dropout == 0 else key,
        )
        x, _ = apply_layers(config, self.layers, x.astype(config.dtype), around)
        states = jnp.where(mask[:, :, None], self.final_norm(x), 0)
        total = states.astype(jnp.float32).sum(axis=1)
        return EncodedText(states, total / mask.sum(axis=1, keepdims=True), mask)


def check_encoder(config: TransformerConfig) -> None:
    """Refuse a transformer that is no encoder.

    Raises:
        ValueError: If it hides the future, or wants to be steered by a vector.
    """
    if config.causal or config.modulated:
        raise ValueError(
            "A text encoder reads both ways and is not modulated; got `causal` "
            f"{config.causal} and `modulated` {config.modulated}. Give causal False alone."
        )
