"""What is asked of generation: checked before anything is computed, and put into arrays."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from genai_jax.constraints.token_automaton import TokenAutomaton
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.tables import Constraint, fit_together

Tokens = Sequence[int] | np.ndarray
Overflow = Literal["truncate", "stop", "roll", "error"]

_MOST = 2**31 - 1 - 2**24  # with room to count on
NO_TOKEN = -1
"""Stands where there is no token."""
MOST_STOPS = 64
"""Most ids that can end a row."""
MOST_ALTERNATIVES = 20
"""Most likely tokens of which the probabilities can be had, beside the one that was drawn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt, and what is to follow it.

    Attributes:
        prompt: Token ids, at least one.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to draw.
        seed: Of the noise, modulo 2^32: with the same seed, the same request gives the same tokens.
        stop_ids: Tokens that end it, at most 64.
        overflow: What happens where the prompt and `max_tokens` exceed the model's context.
            `truncate`: a prompt that leaves room for no token loses its oldest ones, so that
            `max_tokens`, or half of the context, can follow; text ends where the context is full.
            `stop`: the prompt must fit, and text ends where the context is full. `roll`: whenever
            it is full, the first `sinks` tokens and the newer half of the others are read again, at
            the positions that they then have, and text goes on. `error`: it is refused.
        sinks: Oldest tokens that `roll` keeps for good, such as a system prompt; they also take
            the attention that has nowhere else to go (Xiao et al., arXiv:2309.17453, section 3).
        automaton: What the text must be; its end ids are the stop ids. None: anything.
        alternatives: Of how many likeliest tokens the probabilities are given, at most 20.
        speculate: Whether an engine that looks ahead does so for it; the tokens are the same.
    """

    prompt: Tokens
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    max_tokens: int = 64
    seed: int = 0
    stop_ids: Sequence[int] = ()
    overflow: Overflow = "truncate"
    sinks: int = 4
    automaton: TokenAutomaton | None = None
    alternatives: int = 0
    speculate: bool = True


class ContextError(ValueError):
    """A prompt, with what is to follow it, exceeds the context of the model."""


def owned(request: Request) -> Request:
    """Copy what the caller may change later, in the types that are computed with.

    Raises:
        ValueError: If a number is not whole, or out of the range of any.
    """
    prompt = np.asarray(request.prompt)
    if prompt.ndim != 1 or (prompt.size and prompt.dtype.kind not in "iu"):
        raise ValueError(
            f"a prompt must be a row of ids; got {prompt.dtype} of shape {prompt.shape}."
        )
    if prompt.size and not -_MOST <= int(prompt.min()) <= int(prompt.max()) <= _MOST:
        raise ValueError(f"a prompt's ids must be below {_MOST}; got {prompt.max()}.")
    if request.overflow not in get_args(Overflow):
        raise ValueError(
            f"`overflow` must be one of {', '.join(get_args(Overflow))}; got {request.overflow!r}."
        )
    stop_ids = tuple(_whole("stop_ids", token) for token in request.stop_ids)
    return dataclasses.replace(
        request,
        prompt=prompt.astype(np.int32),
        max_tokens=_whole("max_tokens", request.max_tokens),
        seed=_whole("seed", request.seed),
        stop_ids=stop_ids,
        sinks=_whole("sinks", request.sinks),
        alternatives=_whole("alternatives", request.alternatives),
    )


def _whole(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"`{name}` must be a whole number; got {value!r:.40}.") from error
    if name != "seed" and abs(number) > _MOST:
        raise ValueError(f"`{name}` must be at most {_MOST}; got {number}.")
    return number


def check_request(request: Request, vocab_size: int, context: int) -> None:
    """Refuse what contradicts itself, or does not fit.

    Args:
        request: What is asked for, as `owned` gives it.
        vocab_size: Number of ids.
        context: Most tokens of a row.

    Raises:
        ContextError: If it exceeds the context, and should be refused then.
        ValueError: If it cannot be.
    """
    most = request.max_tokens
    if most < 1:
        raise ValueError(f"`max_tokens` must be at least 1; got {most}.")
    for name, highest in (("stop_ids", MOST_STOPS), ("alternatives", MOST_ALTERNATIVES)):
        value = getattr(request, name)
        count = value if isinstance(value, int) else len(value)
        if not 0 <= count <= highest:
            raise ValueError(f"`{name}` must be at most {highest} for a row; got {count}.")
    _check_prompt(np.asarray(request.prompt), vocab_size)
    _check_sampling(request, vocab_size)
    _check_context(request, context)
    if request.automaton is not None:
        _check_automaton(request, request.automaton, vocab_size, context)


def _check_prompt(tokens: np.ndarray, vocab_size: int) -> None:
    if not tokens.size:
        raise ValueError(
            "a prompt must hold at least one token; got none. Begin with the end-of-text id, as "
            "documents do."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"a prompt's ids must be from 0 to {vocab_size - 1}; got {tokens.min()} to "
            f"{tokens.max()}. Encode it with the tokenizer that the model was trained with."
        )


def _check_sampling(request: Request, vocab_size: int) -> None:
    sampling = request.sampling
    if sampling.min_tokens > request.max_tokens:
        raise ValueError(
            "`min_tokens` must not exceed `max_tokens`; got "
            f"{sampling.min_tokens} and {request.max_tokens}."
        )
    named = (*sampling.ids, *request.stop_ids)
    wrong = [token for token in named if not 0 <= token < vocab_size]
    if wrong:
        raise ValueError(f"ids must be from 0 to {vocab_size - 1}; got {wrong[:5]}.")
    if len(sampling.forced) > request.max_tokens:
        raise ValueError(
            f"`forced` must have no more ids than `max_tokens`; got {len(sampling.forced)} and "
            f"{request.max_tokens}."
        )
    early = set(request.stop_ids) if sampling.min_tokens else set()
    if len(sampling.excluded | early) >= vocab_size:
        raise ValueError(
            "some id must be left to draw; `forbidden`, `logit_bias` and, before `min_tokens`, "
            f"`stop_ids` exclude all {vocab_size}."
        )


def _check_context(request: Request, context: int) -> None:
    length = len(request.prompt)
    if request.overflow == "error" and length + request.max_tokens > context:
        raise ContextError(
            f"a prompt and what follows it must fit into the context of {context} tokens; got "
            f"{length} and up to {request.max_tokens}. Shorten the prompt, ask for fewer tokens, "
            "or let it overflow by truncate, stop or roll."
        )
    if request.overflow == "stop" and length >= context:
        raise ContextError(
            f"a prompt must be shorter than the context of {context} tokens; got {length}. Shorten "
            "it, or let it overflow by truncate or roll."
        )
    if request.overflow == "roll" and not 0 <= request.sinks < context // 2:
        raise ValueError(
            f"`sinks` must be from 0 to less than half of the context; got {request.sinks} of "
            f"{context}."
        )


def _check_automaton(
    request: Request, automaton: TokenAutomaton, vocab_size: int, context: int
) -> None:
    sampling = request.sampling
    if sampling.forced or sampling.min_tokens or sampling.excluded:
        raise ValueError(
            "`forced`, `forbidden`, `min_tokens` and a bias of -inf must not be given where the "
            "text is constrained: together they could leave nothing to draw. Put them into the "
            "schema or the regular expression."
        )
    if len(automaton.classes) > vocab_size:
        raise ValueError(
            f"an automaton must be of the model's tokenizer; got one of {len(automaton.classes)} "
            f"ids for {vocab_size}."
        )
    used = [
        token
        for token in request.stop_ids
        if token < len(automaton.classes)
        and (automaton.successors[:, automaton.classes[token]] >= 0).any()
    ]
    if used:
        raise ValueError(
            f"a stop id must not be what a constrained text is made of; got {used[:5]}. Leave them "
            "out: the text ends when it is complete."
        )
    if not fit_together([Constraint(automaton, request.stop_ids)]):
        states, classes = automaton.successors.shape
        raise ValueError(
            f"an automaton must fit into the tables of the device; got {states:,} states and "
            f"{classes:,} classes of tokens. Simplify the schema or the regular expression."
        )
    if not request.stop_ids and (automaton.successors[automaton.start] < 0).all():
        raise ValueError(
            "a constrained text must have a token; this schema or regular expression has the empty "
            "text alone."
        )
    room = most_drawn(request, context)
    least = int(automaton.distance[automaton.start])
    if least > room:
        raise ValueError(
            f"a constrained text must fit into what may be drawn; the shortest has {least} tokens, "
            f"and {room} may be drawn. Raise `max_tokens`, or shorten the prompt."
        )


def kept_prompt(request: Request, context: int) -> np.ndarray:
    """Say which tokens of a prompt are read: all, where there is room to draw one after them."""
    prompt = np.asarray(request.prompt, np.int32)
    if len(prompt) < context:
        return prompt
    if request.overflow == "roll":
        return rolled(prompt, request.sinks, context)
    return prompt[-max(1, context - min(request.max_tokens, context // 2)) :]


def rolled(tokens: np.ndarray, sinks: int, context: int) -> np.ndarray:
    """Keep the first tokens, and of the others the newest: half as many as there is room for."""
    newest = max(1, (context - sinks) // 2)
    return np.concatenate([tokens[:sinks], tokens[sinks:][-newest:]])


def most_drawn(request: Request, context: int) -> int:
    """Say how many tokens can be drawn at most."""
    if request.overflow == "roll":
        return request.max_tokens
    return min(request.max_tokens, context - len(kept_prompt(request, context)))


def stop_row(stop_ids: Sequence[int]) -> Int[np.ndarray, " s"]:
    """Put the ids that end a row into an array, padded by -1."""
    row = np.full(MOST_STOPS, NO_TOKEN, np.int32)
    row[: len(stop_ids)] = stop_ids
    return row


def for_each(name: str, given: Any, count: int, single: type | tuple[type, ...]) -> list[Any]:
    """Repeat what is given once for all prompts, or check that there is one for each."""
    kinds = (single, np.integer) if single is int else single
    each = [given] * count if isinstance(given, kinds) else list(given)
    if len(each) != count:
        raise ValueError(
            f"`{name}` must be one, or one for each prompt; got {len(each)} for {count} prompts."
        )
    return each
