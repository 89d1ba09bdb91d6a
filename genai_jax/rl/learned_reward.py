"""A reward model as a reward function."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from genai_jax.models.heads import ScalarModel
from genai_jax.rl.rewards import Sample


@dataclass(frozen=True)
class LearnedReward:
    """What a reward model says of prompt and answer, at the last token.

    Attributes:
        model: Reads with the tokenizer, and the chat template, of the policy.
        length: T, most tokens of a prompt and its answer: rows are padded to it.
        rows: Answers that are read at a time.
    """

    model: ScalarModel
    length: int
    rows: int = 64

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Say the reward of each.

        Raises:
            ValueError: If an answer with its prompt is longer than the model's context.
        """
        scores: list[float] = []
        for start in range(0, len(samples), self.rows):
            tokens = np.zeros((self.rows, self.length), np.int32)
            lengths = np.ones(self.rows, np.int32)
            some = samples[start : start + self.rows]
            for row, sample in enumerate(some):
                ids = np.concatenate([sample.prompt_ids, sample.answer_ids])
                if len(ids) > self.length:
                    raise ValueError(
                        f"a reward model must read all of a text; got {len(ids)} tokens for "
                        f"{self.length}. Raise --length."
                    )
                tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            found = jax.device_get(_at_end(self.model, tokens, lengths))
            scores += found[: len(some)].astype(float).tolist()
        return scores


@jax.jit
def _at_end(model: ScalarModel, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    return model.at_end(tokens, lengths)
