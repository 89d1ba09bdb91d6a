"""Prompts to fill in the middle: what a model reads to write between two texts."""

import numpy as np

from genai_jax.data.fill_in_the_middle import find_sentinels
from genai_jax.data.tokenizers import Ids, Tokenizer


def infill_prompt(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    suffix_first: bool = False,
    most_tokens: int | None = None,
) -> Ids:
    """Encode two texts so that a model goes on with what stands between them.

    `<PRE> prefix <SUF> suffix <MID>`, or `<PRE> <SUF> suffix <MID> prefix`, after what begins
    every text. What it writes ends with one of `infill_end_ids`.

    Args:
        tokenizer: Of a model that was trained to fill in.
        prefix: What stands before.
        suffix: What stands behind.
        suffix_first: Whether to ask in the second way (SPM), which models must know.
        most_tokens: Bound on the prompt, to leave room in the model's context: what is farthest
            from the middle is left out, on both sides. None keeps all.

    Raises:
        ValueError: If the tokenizer has no ids for it, a text spells one of them, or the bound is
            too small for any text.

    Reference: Bavarian et al., arXiv:2207.14255, sections 3 and 4, appendix D.
    """
    sentinels = find_sentinels(tokenizer)
    before = tokenizer.encode_parts([sentinels.prefix, prefix])[1:]
    behind = tokenizer.encode_parts([sentinels.suffix, suffix])[1:]
    if np.isin(np.concatenate([before, behind]), sentinels).any():
        raise ValueError(
            "a text to fill in must not hold the tokenizer's own signs for it "
            "(<|fim_prefix|> and the like), which it would read as such. Write them otherwise."
        )
    if most_tokens is not None:
        room = most_tokens - len(tokenizer.begin_ids) - len(sentinels)
        if room < 1:
            raise ValueError(
                f"`most_tokens` must leave room for a token of text; got {most_tokens}, of which "
                f"{most_tokens - room} are needed."
            )
        half = min(len(behind), room // 2)
        before = before[max(0, len(before) - (room - half)) :]
        behind = behind[: room - len(before)]
    first, last = (before[:0], before) if suffix_first else (before, before[:0])
    pieces = ([sentinels.prefix], first, [sentinels.suffix], behind, [sentinels.middle], last)
    return np.concatenate([tokenizer.begin_ids, *pieces]).astype(np.int32)


def infill_end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Give the ids that end what is filled in: of a document's end, and the signs themselves."""
    ends = () if tokenizer.eot_id is None else (tokenizer.eot_id,)
    return tuple(dict.fromkeys((*tokenizer.end_ids, *ends, *find_sentinels(tokenizer))))
