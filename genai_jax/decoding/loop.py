"""The programs of decoding: one reads a part of a prompt, one puts a row in its place, one draws.

Where prompts are read together, rows are put in their places together too.

For a number of rows, slots of their caches and a width there are these three and no more (and one
that draws for each of the three sizes of tables that automata may need). Settings, seeds, stop ids,
limits, automata and the number of steps are traced. B rows, W tokens that a step
reads of each, V vocabulary, N tokens that a call draws at most.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genai_jax.decoding.adjustments import adjust_logits, can_be_drawn_from, count_drawn
from genai_jax.decoding.lookup import look_up
from genai_jax.decoding.requests import MOST_ALTERNATIVES, NO_TOKEN
from genai_jax.decoding.rows import Rows, put_row, put_rows
from genai_jax.decoding.sampling import draw_tokens
from genai_jax.decoding.tables import Tables, allow_only, follow
from genai_jax.types import PyTree

STEPS = 64
"""Tokens of a row that one call draws, about."""


@runtime_checkable
class DecodingModel(Protocol):
    """What generation needs of a model; `config.max_length` bounds its context."""

    config: Any

    def init_cache(
        self, rows: int, slots: int, *, reach: int = 1, quantized: bool = False
    ) -> PyTree:
        """Make an empty cache for `rows` sequences of at most `slots` tokens.

        Args:
            rows: B.
            slots: Most tokens of a row.
            reach: Of how many tokens that come at a time all but the first may be taken back.
            quantized: Whether keys and values are kept as 8-bit integers.
        """

    def decode(
        self, tokens: Array, cache: PyTree, positions: Array, lengths: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Compute the hidden states of new tokens, [B, T, D], and the cache with them in it.

        Tokens at `lengths` of their row, and behind, are padding.
        """

    def logits(self, hidden: Array) -> Array:
        """Compute the logits, [B, T, V]."""


class Written(NamedTuple):
    """What one call draws, one token behind the other.

    Attributes:
        tokens: The tokens.
        log_probs: Of the model.
        drawn_log_probs: With which they were drawn.
        likeliest: The likeliest ids in the place of each, where any are wanted; -1 where there are
            no more.
        their_log_probs: Of the model.
        length: How many each row has drawn.
    """

    tokens: Int[Array, "b n"]
    log_probs: Float[Array, "b n"]
    drawn_log_probs: Float[Array, "b n"]
    likeliest: Int[Array, "b n k"]
    their_log_probs: Float[Array, "b n k"]
    length: Int[Array, " b"]


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def empty_cache(model: Any, rows: int, slots: int, reach: int, quantized: bool) -> PyTree:
    """Make a cache with nothing in it."""
    return model.init_cache(rows, slots, reach=reach, quantized=quantized)


@functools.partial(jax.jit, donate_argnums=1)
def prefill(
    model: Any,
    cache: PyTree,
    tokens: Int[Array | np.ndarray, "b p"],
    start: Int[Any, ""],
    lengths: Int[Any, " b"],
) -> PyTree:
    """Put tokens at the positions start ... start + p - 1 into a cache."""
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    return model.decode(tokens, cache, positions, lengths)[1]


def read_part(
    model: Any, cache: PyTree, tokens: Int[np.ndarray, " n"], start: int, chunk: int
) -> PyTree:
    """Put the chunk of a text that begins at `start` into the cache of one row."""
    part = np.zeros((1, chunk), np.int32)
    some = tokens[start : start + chunk]
    part[0, : len(some)] = some
    return prefill(model, cache, part, np.int32(start), np.array([len(tokens)], np.int32))


def read_texts(
    model: Any, cache: PyTree, texts: Sequence[Int[np.ndarray, " _"]], rows: int, chunk: int
) -> PyTree:
    """Put some texts into an empty cache of at least as many rows, chunk by chunk."""
    lengths = np.zeros(rows, np.int32)
    lengths[: len(texts)] = [len(text) for text in texts]
    tokens = np.zeros((rows, -(-lengths.max() // chunk) * chunk), np.int32)
    for row, text in zip(tokens, texts, strict=False):
        row[: len(text)] = text
    for start in range(0, tokens.shape[1], chunk):
        cache = prefill(model, cache, tokens[:, start : start + chunk], np.int32(start), lengths)
    return cache


place_row = jax.jit(put_row, donate_argnums=0)
place_rows = jax.jit(put_rows, donate_argnums=0)


@functools.partial(jax.jit, donate_argnums=1, static_argnames="width")
def advance(
    model: Any,
    rows: Rows,
    tables: Tables,
    known: Int[Any, ""],
    halt: Bool[Any, " b"],
    steps: Int[Any, ""],
    patient: Bool[Any, ""],
    *,
    width: int,
) -> tuple[Rows, Written]:
    """Draw the next tokens of all rows.

    Args:
        model: A language model.
        rows: Sequences under way.
        tables: What constrained ones may go on with.
        known: Ids from here on are never drawn.
        halt: Rows to end before that.
        steps: Until a row has drawn so many, or all have ended.
        patient: Whether to go on when a row has ended.
        width: Tokens of a row that are read at a time: its last one, and what may follow it.
    """
    count = rows.token.shape[0]
    rows = rows._replace(ended=rows.ended | halt)
    began = rows.ended
    numbers = jnp.zeros((count, STEPS + width - 1), jnp.float32)
    ids = jnp.full(numbers.shape, NO_TOKEN, jnp.int32)
    likeliest = jnp.zeros((*numbers.shape, MOST_ALTERNATIVES), jnp.int32)
    written = Written(
        ids, numbers, numbers, likeliest, likeliest.astype(jnp.float32), jnp.zeros(count, jnp.int32)
    )

    def unfinished(carry: tuple[Rows, Written]) -> Bool[Array, ""]:
        rows, written = carry
        waits = patient | (rows.ended == began).all()
        return (written.length < jnp.minimum(steps, STEPS)).all() & ~rows.ended.all() & waits

    def step(carry: tuple[Rows, Written]) -> tuple[Rows, Written]:
        rows, written = carry
        reads = rows.token[:, None]
        if width > 1:
            guesses = look_up(rows.tokens, rows.position, width - 1)
            guesses = jnp.where(rows.asked.speculates[:, None], guesses, NO_TOKEN)
            reads = jnp.concatenate([reads, guesses], axis=1)
        positions = rows.position[:, None] + jnp.arange(width)
        hidden, cache = model.decode(jnp.maximum(reads, 0), rows.cache, positions)
        logits = model.logits(hidden).astype(jnp.float32)
        rows = rows._replace(cache=None)

        def draw(i: Any, alive: Array, rows: Rows, written: Written) -> tuple[Array, Rows, Written]:
            """Draw the token behind the i-th that was read, of the rows where that was right."""
            alive, rows, written = _draw(logits[:, i], alive, rows, written, tables, known)
            follows = reads[:, jnp.minimum(i + 1, width - 1)]
            return alive & (i + 1 < width) & (rows.token == follows), rows, written

        if width == 1:
            _, rows, written = draw(0, ~rows.ended, rows, written)
        else:
            _, _, rows, written = jax.lax.while_loop(
                lambda carry: carry[1].any(),
                lambda carry: (carry[0] + 1, *draw(*carry)),
                (jnp.int32(0), ~rows.ended, rows, written),
            )
        return rows._replace(cache=cache), written

    return jax.lax.while_loop(unfinished, step, (rows, written))


def _draw(
    logits: Float[Array, "b v"],
    alive: Bool[Array, " b"],
    rows: Rows,
    written: Written,
    tables: Tables,
    known: Int[Any, ""],
) -> tuple[Bool[Array, " b"], Rows, Written]:
    """Draw one token of each row that is alive; which of them are so afterwards."""
    asked, settings = rows.asked, rows.asked.settings
    among = jnp.where(jnp.arange(logits.shape[-1]) < known, logits, -jnp.inf)
    adjusted = adjust_logits(among, settings.adjustments, rows.seen, asked.stop_ids)
    adjusted = allow_only(adjusted, tables, rows.state, asked.most - rows.seen.length)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    broken = alive & ~(can_be_drawn_from(adjusted) & jnp.isfinite(total[:, 0]))
    alive = alive & ~broken
    # A token's noise is keyed by its row's seed and its own position: by nothing around it.
    keys = jax.vmap(jax.random.key)(asked.seed)
    keys = jax.vmap(jax.random.fold_in)(keys, asked.dropped + rows.position + 1)
    drawn = draw_tokens(adjusted, keys, settings.temperature, settings.filters)
    token = jnp.where(alive, drawn.tokens.astype(jnp.int32), rows.token)
    position = rows.position + alive
    written = _write(written, among - total, token, drawn.log_probs, alive, asked.alternatives)
    seen = count_drawn(rows.seen, token, alive)
    state, complete = follow(tables, rows.state, token)
    state = jnp.where(alive, state, rows.state)
    stops = (token[:, None] == asked.stop_ids).any(-1)
    stops &= seen.length >= settings.adjustments.min_tokens
    full = (seen.length >= asked.most) | (position + 1 >= asked.length)
    ends = broken | (alive & (stops | complete | full))
    tokens = rows.tokens
    if tokens.shape[1]:
        at = jnp.where(alive, position, tokens.shape[1])
        tokens = tokens.at[jnp.arange(len(at)), at].set(token, mode="drop")
    rows = rows._replace(
        tokens=tokens,
        token=token,
        position=position,
        seen=seen,
        state=state,
        ended=rows.ended | ends,
        broken=rows.broken | broken,
    )
    return alive & ~ends, rows, written


def _write(
    written: Written,
    all_log_probs: Float[Array, "b v"],
    token: Int[Array, " b"],
    drawn_log_probs: Float[Array, " b"],
    alive: Bool[Array, " b"],
    alternatives: Int[Any, " b"],
) -> Written:
    """Note a token of each row that is alive, and its probabilities."""
    rows, most = jnp.arange(token.shape[0]), written.tokens.shape[1]
    at = jnp.where(alive, written.length, most)

    def note(place: Array, value: Array) -> Array:
        return place.at[rows, at].set(value, mode="drop")

    def note_likeliest(places: tuple[Array, Array]) -> tuple[Array, Array]:
        values, ids = jax.lax.top_k(all_log_probs, min(MOST_ALTERNATIVES, all_log_probs.shape[-1]))
        missing = [(0, 0), (0, MOST_ALTERNATIVES - ids.shape[1])]
        values = jnp.pad(values, missing, constant_values=-jnp.inf)
        ids = jnp.where(values > -jnp.inf, jnp.pad(ids, missing), NO_TOKEN)
        return note(places[0], ids), note(places[1], values)

    likeliest, their_log_probs = jax.lax.cond(
        jnp.any(alive & (alternatives > 0)),
        note_likeliest,
        lambda places: places,
        (written.likeliest, written.their_log_probs),
    )
    chosen = jnp.take_along_axis(all_log_probs, token[:, None], axis=-1)
    return Written(
        note(written.tokens, token),
        note(written.log_probs, chosen[:, 0]),
        note(written.drawn_log_probs, drawn_log_probs),
        likeliest,
        their_log_probs,
        written.length + alive,
    )


def on_one_device(model: Any) -> Any:
    """Take one copy of a model that every device holds whole: others would compute the same.

    A model that is cut over devices stays where it is.
    """
    return on_each_device(model, 1)[0]


def on_each_device(model: Any, most: int) -> list[Any]:
    """Take the copies of a model that this host's devices hold whole, or the model if it is cut.

    Args:
        model: A language model.
        most: How many copies are wanted.
    """
    leaves = jax.tree.leaves(model)
    if not all(isinstance(leaf, jax.Array) and leaf.is_fully_replicated for leaf in leaves):
        return [model]
    count = min(most, *(len(leaf.addressable_shards) for leaf in leaves))
    copies = [[leaf.addressable_shards[n].data for leaf in leaves] for n in range(count)]
    return [jax.tree.unflatten(jax.tree.structure(model), copy) for copy in copies]
