"""Sequences under way, as arrays: what is known of each row, and how a new one takes its place.

B rows, V vocabulary, S tokens of a row at most, E ids that end one at most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt32

from genai_jax.decoding.adjustments import Seen
from genai_jax.decoding.requests import Request, most_drawn, stop_row
from genai_jax.decoding.sampling import Settings, settings_of
from genai_jax.decoding.tables import FREE, walk
from genai_jax.types import PyTree


class Asked(NamedTuple):
    """What a row is asked for; it does not change while tokens are drawn.

    Attributes:
        settings: How tokens are drawn.
        seed: Of the noise.
        stop_ids: Tokens that end it, padded by -1.
        most: Most tokens to draw.
        length: Most tokens of the row, prompt included, until the context is full.
        dropped: Tokens that stood before the row's first, and are no longer there.
        alternatives: Of how many likeliest tokens the probabilities are wanted.
        speculates: Whether tokens that may follow are guessed and read in advance.
    """

    settings: Settings
    seed: UInt32[Any, " b"]
    stop_ids: Int[Any, "b e"]
    most: Int[Any, " b"]
    length: Int[Any, " b"]
    dropped: Int[Any, " b"]
    alternatives: Int[Any, " b"]
    speculates: Bool[Any, " b"]


class Rows(NamedTuple):
    """Sequences under way.

    Attributes:
        cache: Of all tokens but each row's last.
        tokens: The tokens of a row, where tokens that may follow are looked up in them.
        token: The last token of a row.
        position: Its position.
        seen: What stands in the rows.
        state: Of the automaton that its text must follow; -1 without one.
        ended: Rows that draw no more.
        broken: Rows that ended since there was nothing to draw.
        asked: What they are asked for.
    """

    cache: PyTree
    tokens: Int[Any, "b s"]
    token: Int[Any, " b"]
    position: Int[Any, " b"]
    seen: Seen
    state: Int[Any, " b"]
    ended: Bool[Any, " b"]
    broken: Bool[Any, " b"]
    asked: Asked


def make_row(
    request: Request,
    kept: np.ndarray,
    drawn: np.ndarray,
    cache: PyTree,
    *,
    context: int,
    slots: int,
    vocab_size: int,
) -> Rows:
    """Make the row of a request, of which some tokens may have been drawn already.

    Args:
        request: What is asked for.
        kept: The tokens that stand in the row.
        drawn: All that were drawn before.
        cache: Of one row, with all kept tokens but the last in it.
        context: Most tokens of a row.
        slots: S; 0 where nothing is looked up.
        vocab_size: V, of the model's logits.
    """

    def one(value: Any, dtype: Any = np.int32) -> np.ndarray:
        return np.array([value], dtype)

    prompt = np.asarray(request.prompt, np.int32)
    stands = np.zeros((1, vocab_size), bool)
    stands[0, prompt] = True
    counts = np.bincount(drawn, minlength=vocab_size).astype(np.int32)[None]
    most = most_drawn(request, context)
    tokens = np.zeros((1, slots), np.int32)
    if slots:
        tokens[0, : len(kept)] = kept
    state = FREE if request.automaton is None else walk(request.automaton, drawn)
    asked = Asked(
        settings_of([request.sampling], vocab_size),
        one(request.seed % 2**32, np.uint32),
        stop_row(request.stop_ids)[None],
        one(most),
        one(context),
        one(len(prompt) + len(drawn) - len(kept)),
        one(request.alternatives),
        one(request.speculate, bool),
    )
    return Rows(
        cache,
        tokens,
        one(kept[-1]),
        one(len(kept) - 1),
        Seen(stands, counts, one(len(drawn))),
        one(state),
        one(False, bool),
        one(False, bool),
        asked,
    )


def empty_rows(row: Rows, cache: PyTree, count: int) -> Rows:
    """Make as many rows, which have all ended, like one.

    Args:
        row: Any row.
        cache: Of that many rows.
        count: How many.
    """
    rows = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), row._replace(cache=None)
    )
    return rows._replace(
        cache=cache, ended=jnp.ones(count, bool), state=jnp.full(count, FREE, jnp.int32)
    )


def put_row(rows: Rows, row: Rows, place: Int[Any, ""]) -> Rows:
    """Put a row in a place."""

    def put(whole: Any, one: Any) -> Any:
        axis = axis_of_rows(whole, one)
        return jax.lax.dynamic_update_slice_in_dim(whole, one.astype(whole.dtype), place, axis)

    return jax.tree.map(put, rows, row)


class Joined(NamedTuple):
    """Rows that are put in their places together.

    Attributes:
        rows: Without caches, padded.
        sources: Which of the caches that come with them each takes; several may take one.
        places: Where each goes.
        count: How many there are.
    """

    rows: Rows
    sources: Int[Any, " n"]
    places: Int[Any, " n"]
    count: Int[Any, ""]


def join_rows(
    each: Sequence[Rows], sources: Sequence[int], places: Sequence[int], most: int
) -> Joined:
    """Join rows without caches, for the same program however many they are; see `Joined`."""
    spare = most - len(each)
    rows = jax.tree.map(lambda *x: np.concatenate([*x, *x[:1] * spare]), *each)
    taken, goes = (np.array([*x, *[0] * spare], np.int32) for x in (sources, places))
    return Joined(rows, taken, goes, np.int32(len(each)))


def put_rows(rows: Rows, caches: PyTree, joined: Joined) -> Rows:
    """Put joined rows in their places, with what was read for them.

    Args:
        rows: Sequences under way.
        caches: Of fewer rows than are under way.
        joined: Who takes which of them, and goes where.
    """

    def put(i: Any, rows: Rows) -> Rows:
        def taken(whole: Any, part: Any) -> Any:
            axis = axis_of_rows(whole, part)
            return jax.lax.dynamic_slice_in_dim(part, joined.sources[i], 1, axis)

        row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), joined.rows)
        row = row._replace(cache=jax.tree.map(taken, rows.cache, caches))
        return put_row(rows, row, joined.places[i])

    return jax.lax.fori_loop(0, joined.count, put, rows)


def axis_of_rows(several: Any, one: Any) -> int:
    """Find the only axis in which they differ; in stacked caches it is not the first."""
    sizes = zip(several.shape, one.shape, strict=True)
    return next(i for i, (n, m) in enumerate(sizes) if n > m)
