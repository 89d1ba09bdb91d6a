"""The language model: embedding, transformer, head; its presets, its table of axes, its groups.

What belongs to this one model (which axes are sharded, what decays, what Muon takes) lives here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.dropout import dropout
from genai_jax.nn.embeddings import Embedding
from genai_jax.nn.rope import RopeConfig
from genai_jax.nn.transformer import (
    Surroundings,
    apply_layers,
    make_caches,
    make_layers,
    make_norm,
    make_rope,
    plan_caches,
)
from genai_jax.types import PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=["slots", "reach"])
@dataclass(frozen=True)
class DecodingCache:
    """Keys and values of all layers.

    Attributes:
        layers: As `nn.transformer.make_caches` made them.
        slots: Most tokens of a row.
        reach: Of how many tokens that come at a time all but the first may be taken back.
    """

    layers: PyTree
    slots: int
    reach: int


# Number of the "layer" whose noise the embedding's dropout takes.
_EMBEDDING = 2**31 - 1


class LanguageModel(nnx.Module):
    r"""A decoder-only transformer: $p(x_{t+1} \mid x_{\le t}) = \mathrm{softmax}(W h_t)$.

    Attributes:
        config: Its shape.
        embedding: Token vectors, [V, D].
        position_embedding: Position vectors, [max_length, D], where positions are learned.
        layers: The blocks, as `nn.transformer.make_layers` holds them.
        final_norm: Normalises what the head reads.
        output: Head of its own, [V, D], where it is not tied to the embedding.
    """

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray):
        """Draw the parameters; the numbers do not depend on how the layers are stored."""
        if config.vocab_size < 1:
            raise ValueError("`vocab_size` must be known; got 0. Take the tokenizer's.")
        if not config.causal or config.modulated:
            raise ValueError(
                "A language model is causal and not modulated; got `causal` "
                f"{config.causal} and `modulated` {config.modulated}. Leave both out."
            )
        token_key, position_key, layer_key, output_key = jax.random.split(key, 4)
        v, d = config.vocab_size, config.embed_dim
        table: dict[str, Any] = {"init_std": config.init_std, "param_dtype": config.param_dtype}
        self.config = config
        self.embedding = Embedding(v, d, token_key, **table)
        learned = config.positions == "learned"
        self.position_embedding = (
            Embedding(config.max_length, d, position_key, **table) if learned else None
        )
        self.layers = make_layers(config, layer_key)
        self.final_norm = make_norm(config, d)
        self.output = None if config.tied else Embedding(v, d, output_key, **table)

    def embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "#b t"]) -> Array:
        """Look up tokens, scaled, and positions where they are learned."""
        config = self.config
        x = self.embedding(tokens)
        if config.embedding_scale:
            # Rounded to the weights' type first, as Gemma's published numbers were made.
            x = x * jnp.asarray(config.embed_dim**0.5, x.dtype)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        return x.astype(config.dtype)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "#b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Compute what the head reads.

        Args:
            tokens: Token ids below V.
            positions: Tokens since the start of the document; None counts from the row's start.
            segment_ids: Number of the document of each token; None is one document a row.
            key: One key a row for dropout; None switches it off.

        Raises:
            ValueError: If a row is longer than the model's context.
        """
        config = self.config
        length = tokens.shape[1]
        if length > config.max_length:
            raise ValueError(
                f"A row must not be longer than `max_length`; got {length} tokens and "
                f"{config.max_length}. Shorten the row or raise max_length."
            )
        if positions is None:
            positions = jnp.arange(length)[None]
        x = self.embed(tokens, positions)
        if config.dropout == config.attention_dropout == 0:
            key = None
        if key is not None:
            keys = jax.vmap(lambda row: jax.random.fold_in(row, _EMBEDDING))(key)
            x = dropout(x, keys, config.dropout, place=0)
        around = Surroundings(make_rope(config, positions), segment_ids, dropout_keys=key)
        x, _ = apply_layers(config, self.layers, x, around)
        return self.final_norm(x)

    def head(self) -> Float[Array, "v d"]:
        """Return the head's table W: the logits are $h W^T$, soft-capped."""
        table = self.embedding if self.output is None else self.output
        return table.table[...]

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Compute the float32 logits of all tokens: for decoding, never for training."""
        table = self.head().astype(hidden.dtype)
        if hidden.shape[1] == 1:
            # A few rows: a CPU multiplies [V, D] from its right side eight times as fast as from
            # its left (benchmarks/README.md). The barriers keep the compiler from turning it.
            barrier = jax.lax.optimization_barrier
            columns = jnp.dot(table, barrier(hidden[:, 0].T), preferred_element_type=jnp.float32)
            logits = barrier(columns).T[:, None]
        else:
            logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        cap = self.config.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t v"]:
        """Compute the logits of one document a row."""
        return self.logits(self.hidden(tokens))

    def init_cache(
        self, rows: int, slots: int, *, reach: int = 1, quantized: bool = False
    ) -> DecodingCache:
        """Make an empty cache for `rows` sequences of at most `slots` tokens.

        Args:
            rows: B.
            slots: Most tokens of a row.
            reach: Of how many tokens that come at a time all but the first may be taken back, by
                others at the same positions in the next call.
            quantized: Whether keys and values are kept as 8-bit integers.
        """
        layers = make_caches(self.config, rows, slots, reach=reach, quantized=quantized)
        return DecodingCache(layers, slots, reach)

    def decode(
        self,
        tokens: Int[Array, "b t"],
        cache: DecodingCache,
        positions: Int[Array, "b t"],
        lengths: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t d"], DecodingCache]:
        """Compute what the head reads for t new tokens a row, given the cache of those before.

        Args:
            tokens: New tokens.
            cache: From `init_cache`, or from the call before.
            positions: Their positions, consecutive in a row.
            lengths: Tokens of each row in all, if some of the new ones are padding behind them.

        Returns:
            The hidden states and the cache with the new tokens in it.
        """
        config = self.config
        if lengths is None:
            lengths = positions[:, -1] + 1
        plans = plan_caches(config, cache.slots, cache.reach, positions, lengths)
        around = Surroundings(make_rope(config, positions), plans=plans)
        x = self.embed(tokens, positions)
        x, layers = apply_layers(config, self.layers, x, around, cache.layers)
        return self.final_norm(x), replace(cache, layers=layers)


# Right-aligned: a stack of layers has one more axis in front. A dimension that the mesh does not
# divide is replicated.
SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(embedding|output)/table$", PartitionSpec("fsdp", None)),
    (r"attention/(query|key|value)/kernel$", PartitionSpec("fsdp", None, None)),
    (r"attention/output/kernel$", PartitionSpec(None, None, "fsdp")),
    (r"mlp/(gate|up)/kernel$", PartitionSpec("fsdp", None)),
    (r"mlp/down/kernel$", PartitionSpec(None, "fsdp")),
    (r"attention/(query|key|value)/lora/b$", PartitionSpec(None, "fsdp", None)),
    (r"attention/output/lora/a$", PartitionSpec("fsdp", None, None)),
    (r"lora/a$", PartitionSpec("fsdp", None)),
    (r"lora/b$", PartitionSpec(None, "fsdp")),
)
"""Fully sharded data parallelism: every matrix is cut along D or V over the axis `fsdp`; adapters
along what is not their rank."""

_MATRIX_AXES = (
    (r"layers/.*attention/(query|key|value)/kernel$", (1, 2)),
    (r"layers/.*attention/output/kernel$", (2, 1)),
    (r"layers/.*mlp/(gate|up|down)/kernel$", (1, 1)),
)


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: at matrices and tables, as nanoGPT has it.

    At the matrices of an adapter, too, which it pulls towards the model that they adapt.
    """
    return name.endswith(("kernel", "table", "lora/a", "lora/b"))


def hidden_matrix(name: str) -> tuple[int, int] | None:
    """Say how many input and output axes a hidden matrix has; None for all other parameters.

    Axes before these number the layers of a stack. Hidden matrices are what Muon takes.
    """
    return next((axes for pattern, axes in _MATRIX_AXES if re.search(pattern, name)), None)


class Groups(TypedDict):
    """What a run has to know of the parameters of a model, by name."""

    rules: Sequence[tuple[str, PartitionSpec]]
    decays: Callable[[str], bool]
    muon: Callable[[str], tuple[int, int] | None]


GROUPS = Groups(rules=SHARDING_RULES, decays=decays, muon=hidden_matrix)
"""Of the language model, and of what holds some: rewards, critics, adapters."""


def fit_vocabulary(model: TransformerConfig, tokens: int) -> TransformerConfig:
    """Give the model the tokenizer's vocabulary, or check that its own is large enough.

    Args:
        model: A vocabulary of 0 takes the tokenizer's size.
        tokens: Ids of the tokenizer.

    Raises:
        ValueError: If the model has fewer ids than the tokenizer.
    """
    if model.vocab_size == 0:
        return replace(model, vocab_size=tokens)
    if tokens > model.vocab_size:
        raise ValueError(
            f"The model's vocabulary must hold the tokenizer's; got {model.vocab_size} and "
            f"{tokens} ids. Raise --model.vocab-size (0 fits it) or lower --data.vocab-size."
        )
    return model


def count_parameters(config: TransformerConfig) -> int:
    """Count the parameters without making them."""
    model = jax.eval_shape(lambda: LanguageModel(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def flops_per_token(config: TransformerConfig, length: int) -> float:
    r"""Count the model FLOPs of training on one token: forward and backward, three times forward.

    Matrix products only, causal attention counted as what is seen (half of T on average), without
    recomputation: $3 \cdot (2 P + \sum_l 4 N H \bar{s}_l)$ with P the parameters that multiply
    and $\bar{s}_l$ the mean number of tokens seen in layer l.

    Reference: Chowdhery et al. (PaLM), arXiv:2204.02311, appendix B, with causal attention.
    """
    d, n, k, h, f = (
        config.embed_dim,
        config.num_heads,
        config.kv_heads,
        config.head_size,
        config.mlp_size,
    )
    per_layer = d * h * (2 * n + 2 * k) + d * f * (3 if config.gated else 2)
    multiplied = config.num_layers * per_layer + config.vocab_size * d
    seen = {"global": (length + 1) / 2}
    if config.window is not None:
        w = min(config.window, length)
        seen["sliding"] = (w * (w + 1) / 2 + (length - w) * w) / length
    attention = sum(4 * n * h * seen[kind] for kind in config.layer_kinds)
    return 3 * (2 * multiplied + attention)


NANOGPT_CPU = TransformerConfig(
    num_layers=4,
    embed_dim=128,
    num_heads=4,
    max_length=64,
    norm="layer",
    positions="learned",
    activation="gelu_exact",
    gated=False,
)
TASKS = TransformerConfig(
    num_layers=4,
    embed_dim=128,
    num_heads=4,
    mlp_dim=384,
    max_length=128,
    qk_norm=True,
    init_std=0.05,  # GPT-2's 0.02 is made for 768 wide
)
"""What learns the embedded tasks in minutes on a laptop."""
GPT2_124M = TransformerConfig(
    vocab_size=50257,
    num_layers=12,
    embed_dim=768,
    num_heads=12,
    max_length=1024,
    norm="layer",
    norm_bias=True,
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
)
LLAMA3_8B = TransformerConfig(
    vocab_size=128256,
    num_layers=32,
    embed_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    mlp_dim=14336,
    max_length=8192,
    rope=RopeConfig(theta=500_000.0),
    tied=False,
    dtype="bfloat16",
    layers="scanned",
    remat="full",
)
