"""The transformer block and the stack of blocks: one configuration for many families.

D embed_dim, N num_heads, K num_kv_heads, H head_dim, F mlp_dim, L num_layers.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from genai_jax.nn.attention import attend
from genai_jax.nn.cache import (
    CachePlan,
    KeyValues,
    empty_key_values,
    extend,
    plan_full,
    plan_ring,
)
from genai_jax.nn.config import LayerKind, TransformerConfig
from genai_jax.nn.dropout import dropout
from genai_jax.nn.linear import Linear
from genai_jax.nn.mlp import MLP
from genai_jax.nn.modulation import Adjustment, Modulation
from genai_jax.nn.norms import LayerNorm, RMSNorm
from genai_jax.nn.recomputation import recomputed
from genai_jax.nn.rope import RopeConfig, apply_rope, rope_tables
from genai_jax.types import PyTree


class Surroundings(NamedTuple):
    """What all layers of one forward pass share.

    Attributes:
        rope: cos and sin by kind of layer; empty where positions are not rotary.
        segment_ids: Number of the document of each token; None for one document a row.
        plans: By kind of layer, what happens to its cache; empty without one.
        dropout_keys: One key a row; None switches dropout off.
        vector: What modulated blocks are steered by; None where they are not modulated.
    """

    rope: dict[str, tuple[Array, Array]]
    segment_ids: Int[Array, "b t"] | None = None
    plans: Mapping[str, CachePlan] = MappingProxyType({})
    dropout_keys: Key[Array, " b"] | None = None
    vector: Float[Array, "b d"] | None = None


def make_norm(
    config: TransformerConfig, dim: int, *, use_scale: bool = True
) -> LayerNorm | RMSNorm:
    """Build the normalisation that the configuration names, over `dim` elements."""
    options: dict[str, Any] = {
        "eps": config.norm_eps,
        "use_scale": use_scale,
        "param_dtype": config.param_dtype,
    }
    if config.norm == "layer":
        return LayerNorm(dim, use_bias=config.norm_bias, **options)
    return RMSNorm(dim, offset=config.norm_offset, **options)


def make_rope(
    config: TransformerConfig, positions: Int[Array, "b t"]
) -> dict[str, tuple[Array, Array]]:
    """Compute the rotary tables of every kind of layer that the model has."""
    if config.positions != "rope":
        return {}
    local = config.rope if config.local_theta is None else RopeConfig(theta=config.local_theta)
    ropes = {"global": config.rope, "sliding": local}
    kinds = sorted(set(config.layer_kinds))
    return {kind: rope_tables(ropes[kind], config.head_size, positions) for kind in kinds}


class Attention(nnx.Module):
    """Self-attention with grouped heads, rotary positions and a cache."""

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray):
        """Draw the four projections."""
        self.config = config
        d, n, k, h = config.embed_dim, config.num_heads, config.kv_heads, config.head_size
        keys = jax.random.split(key, 4)
        inner: dict[str, Any] = {"init_std": config.init_std, "param_dtype": config.param_dtype}
        self.query = Linear((d,), (n, h), keys[0], use_bias=config.qkv_bias, **inner)
        self.key = Linear((d,), (k, h), keys[1], use_bias=config.qkv_bias, **inner)
        self.value = Linear((d,), (k, h), keys[2], use_bias=config.qkv_bias, **inner)
        self.output = Linear(
            (n, h),
            (d,),
            keys[3],
            use_bias=config.output_bias,
            init_std=config.output_std,
            param_dtype=config.param_dtype,
        )
        self.query_norm = make_norm(config, h) if config.qk_norm else None
        self.key_norm = make_norm(config, h) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "b t d"],
        kind: LayerKind,
        around: Surroundings,
        cache: KeyValues | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b t d"], KeyValues | None]:
        """Attend; with a cache, write the new keys and values into it first."""
        config = self.config
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if around.rope:
            query = apply_rope(query, around.rope[kind])
            key = apply_rope(key, around.rope[kind])
        visible = None
        if cache is not None:
            visible = around.plans[kind].visible
            cache, seen = extend(cache, key, value, around.plans[kind])
            key, value = (jnp.swapaxes(y, 1, 2).astype(x.dtype) for y in seen[:2])
        mixed = attend(
            query,
            key,
            value,
            scale=config.query_scale,
            causal=config.causal,
            window=config.window if kind == "sliding" and cache is None else None,
            softcap=config.attention_softcap,
            segment_ids=around.segment_ids if cache is None else None,
            attention_mask=visible,
            dropout_keys=dropout_keys,
            dropout_rate=config.attention_dropout,
            implementation="auto" if cache is not None else config.attention,
        )
        return self.output(mixed), cache


class Block(nnx.Module):
    r"""One layer: $x \mathrel{+}= \mathrm{attention}$, then $x \mathrel{+}= \mathrm{mlp}$.

    Each branch reads a normalised copy of the residual (pre-norm); with `post_norms` its result is
    normalised again before it is added (Gemma 2, arXiv:2408.00118, section 2). Where the block is
    modulated, a vector shifts and scales what each branch reads and gates what it adds (DiT,
    arXiv:2212.09748, section 3.2).
    """

    def __init__(self, config: TransformerConfig, key: PRNGKeyArray):
        """Draw the parameters of a layer; every kind of layer has the same ones."""
        attention_key, mlp_key = jax.random.split(key)
        d = config.embed_dim

        def norm() -> LayerNorm | RMSNorm:
            return make_norm(config, d, use_scale=not config.modulated)

        self.config = config
        self.attention_norm = norm()
        self.attention = Attention(config, attention_key)
        self.attention_post_norm = norm() if config.post_norms else None
        self.mlp_norm = norm()
        self.mlp = MLP(
            d,
            config.mlp_size,
            mlp_key,
            activation=config.activation,
            gated=config.gated,
            use_bias=config.mlp_bias,
            init_std=config.init_std,
            output_std=config.output_std,
            param_dtype=config.param_dtype,
        )
        self.mlp_post_norm = norm() if config.post_norms else None
        self.modulation = (
            Modulation(d, key, branches=2, gated=True, param_dtype=config.param_dtype)
            if config.modulated
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        kind: LayerKind,
        around: Surroundings,
        index: int | Int[Array, ""],
        cache: KeyValues | None = None,
    ) -> tuple[Float[Array, "b t d"], KeyValues | None]:
        """Add both branches to the residual; `index` numbers the layer for dropout's noise."""
        keys = around.dropout_keys
        if keys is not None:
            keys = jax.vmap(lambda row: jax.random.fold_in(row, index))(keys)
        on_attention = on_mlp = Adjustment()
        if self.modulation is not None:
            assert around.vector is not None
            on_attention, on_mlp = self.modulation(around.vector)

        read = on_attention.read(self.attention_norm(x))
        branch, cache = self.attention(read, kind, around, cache, keys)
        x = x + self._added(branch, self.attention_post_norm, on_attention, keys, place=0)

        branch = self.mlp(on_mlp.read(self.mlp_norm(x)))
        return x + self._added(branch, self.mlp_post_norm, on_mlp, keys, place=1), cache

    def _added(
        self,
        branch: Float[Array, "b t d"],
        post_norm: LayerNorm | RMSNorm | None,
        adjustment: Adjustment,
        keys: Key[Array, " b"] | None,
        place: int,
    ) -> Float[Array, "b t d"]:
        """Make of the result of a branch what is added to the residual."""
        if post_norm is not None:
            branch = post_norm(branch)
        branch = adjustment.add(branch)
        return branch if keys is None else dropout(branch, keys, self.config.dropout, place)


def make_layers(config: TransformerConfig, key: PRNGKeyArray) -> PyTree:
    """Draw all layers: a list of blocks, or one block whose parameters have a leading layer axis.

    Both hold the same numbers.
    """
    keys = jax.random.split(key, config.num_layers)
    if config.layers == "scanned":
        return jax.vmap(lambda k: Block(config, k))(keys)
    return nnx.List([Block(config, k) for k in keys])


_REMAT: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def apply_layers(
    config: TransformerConfig,
    layers: PyTree,
    x: Float[Array, "b t d"],
    around: Surroundings,
    caches: PyTree = None,
) -> tuple[Float[Array, "b t d"], PyTree]:
    """Run the stack of blocks.

    A scanned stack whose layers are of several kinds is scanned over whole cycles of the pattern;
    the layers that are left over are unrolled.

    Args:
        config: Pattern of kinds, storage, rematerialisation.
        layers: What `make_layers` made.
        x: Embedded tokens.
        around: What the layers share.
        caches: What `make_caches` made; None in training.

    Returns:
        The residual after the last layer, and the new caches.
    """
    pattern = config.layer_pattern
    period = len(pattern)

    def run(
        block: Block, x: Array, index: Any, cache: Any, kind: LayerKind, member: int | None
    ) -> tuple[Array, Any]:
        # Taken out of its cycle in here, where the backward pass does so again: it would keep what
        # was taken before, which is a copy of all layers.
        if member is not None:
            block, index = jax.tree.map(lambda leaf: leaf[member], (block, index))
        return block(x, kind, around, index, cache)

    if config.remat != "none":
        # Inside a scan there is nothing to merge with, so that the barrier would only cost.
        run = jax.checkpoint(
            run,
            policy=_REMAT[config.remat],
            prevent_cse=config.layers == "unrolled",
            static_argnums=(4, 5),
        )
    kinds = config.layer_kinds
    if config.layers == "unrolled":
        return _apply_list(config, run, layers, x, around, caches)

    cycles = config.num_layers // period
    in_cycles = cycles * period
    stack = (layers, jnp.arange(config.num_layers))
    of_cycles, of_rest = (None, None) if caches is None else caches

    def cycle(x: Array, slices: Any) -> tuple[Array, Any]:
        (blocks, indices), old = slices
        new = []
        for i, kind in enumerate(pattern):
            member = i if period > 1 else None
            x, cache = run(blocks, x, indices, None if old is None else old[i], kind, member)
            new.append(cache)
        return x, tuple(new)

    # Left alone where it can be: of what is reshaped before a loop a CPU makes a copy.
    folded = stack
    if period > 1:
        folded = jax.tree.map(
            lambda leaf: leaf[:in_cycles].reshape(cycles, period, *leaf.shape[1:]), stack
        )
    x, new_cycles = jax.lax.scan(cycle, x, (folded, of_cycles))
    new_rest = []
    for i in range(in_cycles, config.num_layers):
        block, index = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        cache = None if of_rest is None else of_rest[i - in_cycles]
        x, cache = run(block, x, index, cache, kinds[i], None)
        new_rest.append(cache)
    return x, None if caches is None else (new_cycles, tuple(new_rest))


def _apply_list(
    config: TransformerConfig,
    run: Callable[..., Any],
    blocks: Any,
    x: Float[Array, "b t d"],
    around: Surroundings,
    caches: Any,
) -> tuple[Float[Array, "b t d"], Any]:
    """Run unrolled layers: `run`, or what a CPU needs in its place to keep their inputs alone."""
    on_cpu = jax.default_backend() == "cpu" and config.remat == "full" and caches is None
    new = []
    for i, (block, kind) in enumerate(zip(blocks, config.layer_kinds, strict=True)):
        if on_cpu:
            x = _recomputed_layer(block, x, around, i, kind)
            continue
        x, cache = run(block, x, i, None if caches is None else caches[i], kind, None)
        new.append(cache)
    return x, None if caches is None else tuple(new)


def _recomputed_layer(
    block: Block, x: Float[Array, "b t d"], around: Surroundings, index: int, kind: LayerKind
) -> Float[Array, "b t d"]:
    """Run a layer of which a CPU keeps the inputs alone."""

    def run(x: Array, rest: Any) -> Array:
        block, arrays = rest
        return block(x, kind, Surroundings(**arrays), index)[0]

    arrays = {name: x for name, x in around._asdict().items() if name != "plans"}
    return recomputed(run, x, (block, arrays))


def ring_slots(config: TransformerConfig, slots: int, reach: int) -> int:
    """Count the slots of sliding layers: a window, and what may have to be taken back."""
    return slots if config.window is None else min(slots, config.window + reach - 1)


def make_caches(
    config: TransformerConfig, rows: int, slots: int, *, reach: int = 1, quantized: bool = False
) -> PyTree:
    """Make empty caches for `rows` sequences of at most `slots` tokens.

    Args:
        config: Of the layers.
        rows: B.
        slots: Of the layers that see everything; sliding ones have no more than they need.
        reach: Of how many tokens that come at a time all but the first may be taken back.
        quantized: Whether keys and values are kept as 8-bit integers.

    Returns:
        One a layer; or, scanned, one a member of the pattern, with a leading axis of cycles, and
        one for each layer that is left over.
    """

    def make(kind: LayerKind, *stack: int) -> KeyValues:
        least = slots if kind == "global" else ring_slots(config, slots, reach)
        shape = (*stack, rows, config.kv_heads, least, config.head_size)
        return empty_key_values(shape, config.dtype, quantized=quantized)

    if config.layers == "unrolled":
        return tuple(make(kind) for kind in config.layer_kinds)
    cycles, rest = divmod(config.num_layers, len(config.layer_pattern))
    of_cycles = tuple(make(kind, cycles) for kind in config.layer_pattern)
    return of_cycles, tuple(make(kind) for kind in config.layer_pattern[:rest])


def plan_caches(
    config: TransformerConfig,
    slots: int,
    reach: int,
    positions: Int[Array, "b t"],
    lengths: Int[Array, " b"],
) -> dict[str, CachePlan]:
    """Plan what happens to the caches of every kind of layer, made for `slots` and `reach`."""
    plans = {"global": plan_full(slots, positions)}
    if config.window is not None:
        ring = ring_slots(config, slots, reach)
        plans["sliding"] = plan_ring(ring, config.window, positions, lengths, reach)
    return {kind: plans[kind] for kind in sorted(set(config.layer_kinds))}
