"""A reward model as a reward function."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from genai_jax.models.heads import ScalarModel
from genai_jax.parallel.sharding import over_rows, replicated
from genai_jax.rl.rewards import Sample


@dataclass(frozen=True)
class LearnedReward:
    """What a reward model says of prompt and answer, at the last token.

    Attributes:
        model: Reads with the tokenizer, and the chat template, of the policy.
        length: T, most tokens of a prompt and its answer: rows are padded to it.
        rows: Answers that are read at a time.
        mesh: Its devices share them, if they divide them; None is where the model is.
    """

    model: ScalarModel
    length: int
    rows: int = 64
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Give every device the model."""
        if self.mesh is not None:
            object.__setattr__(self, "model", jax.device_put(self.model, replicated(self.mesh)))

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Say the reward of each.

        Raises:
            ValueError: If an answer with its prompt is longer than the model's context.
        """
        shared = self.mesh is not None and self.rows % self.mesh.size == 0
        read = _make_reader(self.mesh if shared else None)
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
            found = jax.device_get(read(self.model, tokens, lengths))
            scores += found[: len(some)].astype(float).tolist()
        return scores


@functools.cache
def _make_reader(mesh: Mesh | None) -> Callable[[ScalarModel, np.ndarray, np.ndarray], jax.Array]:
    def at_end(model: ScalarModel, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return model.at_end(tokens, lengths)

    return jax.jit(at_end if mesh is None else over_rows(at_end, mesh, (False, True, True)))
