"""Generation in one call: what follows each of some prompts, all of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genai_jax.constraints.token_automaton import TokenAutomaton
from genai_jax.decoding.engine import Engine, Generated
from genai_jax.decoding.loop import DecodingModel
from genai_jax.decoding.requests import (
    Overflow,
    Request,
    Tokens,
    check_request,
    for_each,
    most_drawn,
    owned,
)
from genai_jax.decoding.sampling import SamplingConfig


def generate(
    model: DecodingModel,
    prompts: Sequence[Tokens],
    sampling: SamplingConfig | Sequence[SamplingConfig],
    *,
    max_tokens: int | Sequence[int],
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    overflow: Overflow = "truncate",
    automaton: TokenAutomaton | Sequence[TokenAutomaton | None] | None = None,
    alternatives: int = 0,
    vocab_size: int | None = None,
    rows: int = 0,
    context: int = 0,
    width: int = 1,
    quantized: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[Generated]:
    """Draw what follows each prompt.

    Args:
        model: A language model.
        prompts: Token ids, at least one a prompt.
        sampling: How tokens are drawn: for all prompts, or for each.
        max_tokens: Most tokens to draw, for all prompts or for each.
        seed: Of the noise, for each prompt; a single one gives prompt i `seed + i`.
        stop_ids: Tokens that end a text, at most 64: for all prompts, or lists for each.
        overflow: What happens where a text exceeds the context, as `Request` has it.
        automaton: What a text must be, for all prompts or for each; None is anything.
        alternatives: Of how many likeliest tokens the probabilities are given, at most 20.
        vocab_size: Number of ids that may be drawn; None is the model's.
        rows: Rows that are computed at a time; 0 is one for each prompt. Where `rows` and `context`
            are the same, a prompt's tokens are the same to the last bit of their probabilities.
        context: Tokens that the cache is made for, at least; a power of two is.
        width: Tokens of a row that are read at a time, as `Engine` has it.
        quantized: Whether keys and values are kept as 8-bit integers.
        check: Is called every few tokens; may raise, to give up.

    Raises:
        ValueError: If a prompt is empty or holds an id that the model does not have, or what is
            asked for contradicts itself.
    """
    count = len(prompts)
    known = model.config.vocab_size if vocab_size is None else vocab_size
    seeds = range(seed, seed + count) if isinstance(seed, int | np.integer) else seed
    shared = all(isinstance(token, int | np.integer) for token in stop_ids)
    single = (TokenAutomaton, type(None))
    columns = (
        prompts,
        for_each("sampling", sampling, count, SamplingConfig),
        for_each("max_tokens", max_tokens, count, int),
        for_each("seed", seeds, count, int),
        [stop_ids] * count if shared else for_each("stop_ids", stop_ids, count, int),
        for_each("automaton", automaton, count, single),
    )
    options: dict[str, Any] = {"overflow": overflow, "alternatives": alternatives}
    requests = [
        owned(Request(prompt, config, most, number, stops, automaton=chosen, **options))
        for prompt, config, most, number, stops, chosen in zip(*columns, strict=True)
    ]
    again = len({bytes(np.asarray(request.prompt)) for request in requests}) < count
    engine = fitting_engine(
        model,
        requests,
        vocab_size=known,
        rows=rows,
        context=context,
        width=width,
        prefixes=int(again),
        quantized=quantized,
    )
    return engine.run(requests, check)


def fitting_engine(
    model: DecodingModel,
    requests: Sequence[Request],
    *,
    vocab_size: int,
    rows: int = 0,
    context: int = 0,
    **options: Any,
) -> Engine:
    """Make an engine with no more room than some requests need.

    Args:
        model: A language model.
        requests: What will be asked for.
        vocab_size: Number of ids that may be drawn.
        rows: Rows that are computed at a time; 0 is one for each request.
        context: Tokens that the cache is made for, at least; a power of two is.
        options: More for the engine.

    Raises:
        ValueError: If a request cannot be.
    """
    limit = model.config.max_length
    for name, number in (("rows", rows), ("context", context)):
        if number < 0:
            raise ValueError(f"`{name}` must be at least 0; got {number}.")
    requests = [owned(request) for request in requests]
    for request in requests:
        check_request(request, vocab_size, limit)
    longest = max((_longest(request, limit) for request in requests), default=1)
    slots = min(limit, max(64, 1 << (max(context, longest) - 1).bit_length()))
    rows = max(2, rows or len(requests))
    return Engine(model, rows=rows, context=slots, vocab_size=vocab_size, **options)


def _longest(request: Request, limit: int) -> int:
    """Say how long a row can become."""
    length = len(request.prompt)
    if request.overflow == "roll":  # there must be room for what is never dropped, and as much
        return min(limit, max(length + request.max_tokens, 2 * request.sinks + 2))
    if length >= limit:
        return limit
    return length + most_drawn(request, limit)
