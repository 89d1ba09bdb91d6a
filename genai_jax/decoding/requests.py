"""What is asked of generation: checked before anything is computed, and put into arrays.

B rows, V vocabulary, S ids that end a row at most.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from genai_jax.decoding.adjustments import Seen
from genai_jax.decoding.sampling import SamplingConfig

Tokens = Sequence[int] | np.ndarray

NO_TOKEN = -1
"""Stands where there is no token."""

_MOST_STOPS = 64


def for_each(name: str, given: Any, rows: int, single: type) -> list[Any]:
    """Repeat what is given once for all rows, or check that there is one for each."""
    each = [given] * rows if isinstance(given, single) else list(given)
    if len(each) != rows:
        raise ValueError(
            f"`{name}` must be one, or one for each prompt; got {len(each)} for {rows} prompts."
        )
    return each


def stop_table(given: Sequence[int] | Sequence[Sequence[int]], rows: int) -> Int[np.ndarray, "b s"]:
    """Put the ids that end rows into a table, padded by -1."""
    shared = all(isinstance(x, int | np.integer) for x in given)
    lists = [given] * rows if shared else for_each("stop_ids", given, rows, int)
    table = np.full((rows, _MOST_STOPS), NO_TOKEN, np.int32)
    for row, ids in zip(table, lists, strict=True):
        if len(ids) > _MOST_STOPS:
            raise ValueError(f"`stop_ids` must be at most {_MOST_STOPS} for a row; got {len(ids)}.")
        row[: len(ids)] = ids
    return table


def check_request(config: SamplingConfig, max_tokens: int, vocab_size: int) -> None:
    """Refuse what contradicts itself."""
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` must be at least 1; got {max_tokens}.")
    if config.min_tokens > max_tokens:
        raise ValueError(
            f"`min_tokens` must not exceed `max_tokens`; got {config.min_tokens} and {max_tokens}."
        )
    excluded = {token for token, bias in config.logit_bias.items() if bias == -np.inf}
    if len(excluded | set(config.forbidden)) >= vocab_size:
        raise ValueError(
            f"some id must be left to draw; `forbidden` and `logit_bias` exclude all {vocab_size}."
        )


def seen_in(prompts: list[np.ndarray], vocab_size: int) -> Seen:
    """Say which tokens stand in the prompts; nothing has been drawn."""
    stands = np.zeros((len(prompts), vocab_size), bool)
    for row, prompt in zip(stands, prompts, strict=True):
        row[prompt] = True
    drawn = np.zeros(stands.shape, np.int32)
    return Seen(stands, drawn, np.zeros(len(prompts), np.int32))


def checked(prompt: Tokens, vocab_size: int) -> np.ndarray:
    """Turn a prompt into an array, or refuse it."""
    tokens = np.asarray(prompt, np.int32)
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
    return tokens


def newest(prompt: np.ndarray, max_tokens: int, limit: int) -> np.ndarray:
    """Drop the oldest tokens of a prompt that leaves no room to draw one."""
    if len(prompt) < limit:
        return prompt
    return prompt[-max(1, limit - min(max_tokens, limit // 2)) :]
