"""Training or validation: by the hash of what is asked, so that both never share a prompt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from genai_jax.data.chat_templates import Message
from genai_jax.data.conversations import digest_of_messages


def validation_side(
    openings: Sequence[Sequence[Message]], fraction: float
) -> Bool[np.ndarray, " examples"]:
    """Choose the examples that are for validation.

    The side depends on the opening alone (what is said before the first answer), so it is the same
    in a set of demonstrations and a set of preferences. Only where that leaves a side empty, since
    there are few, the nearest opening goes there.

    Args:
        openings: Of the examples.
        fraction: Share of the openings that are for validation, between 0 and 1.

    Raises:
        ValueError: If there are not two different openings.
    """
    digests = [digest_of_messages(opening)[:8] for opening in openings]
    places = np.array([int.from_bytes(x, "little") for x in digests], np.uint64)
    if len(np.unique(places)) < 2:
        raise ValueError(
            "examples must have at least two different prompts to be split into training and "
            f"validation; got {len(np.unique(places))}. Give more, or both sides apart."
        )
    validation = places < np.uint64(int(fraction * (1 << 64)))
    if not validation.any():
        return places == places.min()
    return places != places.max() if validation.all() else validation
