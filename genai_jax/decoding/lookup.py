"""Guesses at what follows, looked up in the text so far: text that repeats itself comes cheap.

Reading several tokens at once costs little more than one where the parameters must be fetched
anyway; a guess that the model would have drawn is a token for nothing. B rows, S tokens.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from genai_jax.decoding.requests import NO_TOKEN

_LONGEST = 3  # tokens that are compared


def look_up(
    tokens: Int[Any, "b s"], position: Int[Any, " b"], count: int
) -> Int[Array, "b {count}"]:
    """Guess the next tokens: those that followed the newest of the longest earlier matches.

    Args:
        tokens: Of the rows.
        position: Of each row's last token; what lies behind is ignored.
        count: How many to guess.

    Returns:
        The guesses; -1 where there is none.

    Reference: Saxena, "Prompt lookup decoding" (2023), after Stern et al., arXiv:1811.03115,
        section 3: whatever is guessed, what is kept is what the model itself draws.
    """
    tokens = jnp.asarray(tokens)
    slots = tokens.shape[1]
    places = jnp.arange(slots)
    last = position[:, None]
    matches = places < last
    length = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(_LONGEST):
        wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        earlier = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=NO_TOKEN)[:, :slots]
        matches &= (earlier == wanted) & (last >= back)
        length += matches
    best = jnp.argmax(length * slots + places, axis=1, keepdims=True)
    found = jnp.take_along_axis(length, best, axis=1) > 0
    # What reaches the end of the text goes on as text with that period would.
    after = best + 1 + jnp.arange(count) % jnp.maximum(last - best, 1)
    guesses = jnp.take_along_axis(tokens, jnp.minimum(after, slots - 1), axis=1)
    return jnp.where(found, guesses, NO_TOKEN)
