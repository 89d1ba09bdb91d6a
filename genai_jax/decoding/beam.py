"""Beam search: the texts of highest probability that a few rows side by side can find.

W beams, V vocabulary, N tokens at most.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genai_jax.decoding.loop import DecodingModel, empty_cache, read_part
from genai_jax.decoding.requests import (
    NO_TOKEN,
    Request,
    Tokens,
    check_request,
    owned,
    stop_row,
)
from genai_jax.decoding.rows import axis_of_rows
from genai_jax.types import PyTree

_CHUNK = 64


class Hypothesis(NamedTuple):
    """A text that was found.

    Attributes:
        tokens: Its tokens, the stop id included where there is one.
        score: Its log-probability divided by a power of its length.
    """

    tokens: np.ndarray
    score: float


class _Found(NamedTuple):
    """Texts, best first.

    Attributes:
        tokens: Padded by -1.
        scores: -inf where there is none.
    """

    tokens: Int[Array, "w n"]
    scores: Float[Array, " w"]


class _Beams(NamedTuple):
    """A search under way.

    Attributes:
        cache: Of the beams' tokens but the last of each.
        last: The last token of each beam.
        beams: Texts that go on, with their log-probabilities.
        done: Texts that have ended, with their scores.
        step: Tokens of each beam.
    """

    cache: PyTree
    last: Int[Array, " w"]
    beams: _Found
    done: _Found
    step: Int[Array, ""]


def beam_search(
    model: DecodingModel,
    prompt: Tokens,
    *,
    beams: int,
    max_tokens: int,
    stop_ids: Sequence[int] = (),
    length_penalty: float = 1.0,
    vocab_size: int | None = None,
) -> list[Hypothesis]:
    r"""Search for the texts of highest score $\log p(y \mid x) / |y|^{\alpha}$.

    At every step the W likeliest of all one-token continuations of the W beams that do not end go
    on; those that do, and are among the W likeliest of all, are kept apart. The search is over when
    no beam can beat the worst of W ended texts any more, judged at its present length, as in
    Hugging Face's `generate`.

    Args:
        model: A language model.
        prompt: Token ids x.
        beams: W, at least 2.
        max_tokens: N; beams of this length have ended.
        stop_ids: Tokens that end a text.
        length_penalty: $\alpha$; 0 compares log-probabilities, 1 their means.
        vocab_size: Number of ids that may be drawn; None is the model's.

    Returns:
        At most W texts, best first.

    Raises:
        ValueError: If the prompt with `max_tokens` exceeds the context, or a number is out of its
            range.

    Reference: Wu et al., arXiv:1609.08144, section 7, without its coverage penalty, and with
        $|y|^\alpha$ for its length penalty (eq. 14).
    """
    known = model.config.vocab_size if vocab_size is None else vocab_size
    if not 1 <= known <= model.config.vocab_size:
        raise ValueError(
            f"`vocab_size` must be from 1 to {model.config.vocab_size}; got {vocab_size}."
        )
    if not math.isfinite(length_penalty):
        raise ValueError(f"`length_penalty` must be a number; got {length_penalty}.")
    if not 2 <= beams <= known // 2:
        raise ValueError(
            f"`beams` must be from 2 to half of the {known} ids; got {beams}. One beam is greedy "
            "decoding: a temperature of 0."
        )
    request = owned(Request(prompt, max_tokens=max_tokens, stop_ids=stop_ids, overflow="error"))
    check_request(request, known, model.config.max_length)
    tokens = np.asarray(request.prompt)
    slots = max(_CHUNK, 1 << (len(tokens) + request.max_tokens - 1).bit_length())
    one = empty_cache(model, 1, slots, 1, False)
    for start in range(0, len(tokens) - 1, _CHUNK):
        one = read_part(model, one, tokens[:-1], start, _CHUNK)
    several = jax.eval_shape(lambda: empty_cache(model, beams, slots, 1, False))
    axes = jax.tree.map(axis_of_rows, several, one)
    found = _search(
        model,
        one,
        np.full(beams, tokens[-1], np.int32),
        np.int32(len(tokens) - 1),
        stop_row(stop_ids),
        np.int32(known),
        np.float32(length_penalty),
        np.int32(max_tokens),
        buffer=slots,
        # Every beam may end in all of these ways, and W must be left that do not.
        candidates=beams * min(1 + len(set(stop_ids)), known),
        axes=tuple(jax.tree.leaves(axes)),
    )
    texts, scores = jax.device_get((found.tokens, found.scores))
    if not np.isfinite(scores).any():
        raise ValueError("no text was found: the model's logits are no numbers.")
    return [
        Hypothesis(text[text != NO_TOKEN], float(score))
        for text, score in zip(texts, scores, strict=True)
        if score > -np.inf
    ]


@functools.partial(jax.jit, static_argnames=("buffer", "candidates", "axes"))
def _search(
    model: Any,
    cache: PyTree,
    last: Int[Any, " w"],
    position: Int[Any, ""],
    stop_ids: Int[Any, " s"],
    known: Int[Any, ""],
    length_penalty: Float[Any, ""],
    max_tokens: Int[Any, ""],
    *,
    buffer: int,
    candidates: int,
    axes: tuple[int, ...],
) -> _Found:
    width = last.shape[0]
    leaves, structure = jax.tree.flatten(cache)

    def reorder(leaves: list[Array], rows: Int[Array, " w"]) -> list[Array]:
        return [jnp.take(x, rows, axis=axis) for x, axis in zip(leaves, axes, strict=True)]

    nothing = _Found(
        jnp.full((width, buffer), NO_TOKEN, jnp.int32), jnp.full(width, -jnp.inf, jnp.float32)
    )
    # All beams are the prompt: only one of them counts.
    beams = nothing._replace(scores=nothing.scores.at[0].set(0.0))

    def hopeful(state: _Beams) -> Array:
        length = jnp.maximum(state.step, 1).astype(jnp.float32)
        best = state.beams.scores[0] / length**length_penalty
        return (state.step < max_tokens) & (best > state.done.scores[-1])

    def extend(state: _Beams) -> _Beams:
        positions = jnp.full((width, 1), position + state.step)
        hidden, cache = model.decode(state.last[:, None], state.cache, positions)
        logits = model.logits(hidden)[:, 0].astype(jnp.float32)
        logits = jnp.where(jnp.arange(logits.shape[1]) < known, logits, -jnp.inf)
        totals = state.beams.scores[:, None] + jax.nn.log_softmax(logits, axis=-1)
        values, places = jax.lax.top_k(totals.reshape(-1), candidates)
        parents, tokens = jnp.divmod(places, logits.shape[1])
        texts = state.beams.tokens[parents].at[:, state.step].set(tokens)
        step = state.step + 1

        ends = (tokens[:, None] == stop_ids).any(-1) | (step >= max_tokens)
        counts = ends & (jnp.arange(candidates) < width)
        scores = jnp.where(counts, values / step.astype(jnp.float32) ** length_penalty, -jnp.inf)
        done = _best(_join(state.done, _Found(texts, scores)), width)[0]
        going, chosen = _best(_Found(texts, jnp.where(ends, -jnp.inf, values)), width)

        cache = jax.tree.unflatten(structure, reorder(jax.tree.leaves(cache), parents[chosen]))
        return _Beams(cache, tokens[chosen], going, done, step)

    cache = jax.tree.unflatten(structure, reorder(leaves, jnp.zeros(width, jnp.int32)))
    state = _Beams(cache, jnp.asarray(last), beams, nothing, jnp.int32(0))
    return jax.lax.while_loop(hopeful, extend, state).done


def _join(a: _Found, b: _Found) -> _Found:
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)


def _best(found: _Found, count: int) -> tuple[_Found, Int[Array, " w"]]:
    """Keep the best texts, and say which they are."""
    scores, chosen = jax.lax.top_k(found.scores, count)
    return _Found(found.tokens[chosen], scores), chosen
