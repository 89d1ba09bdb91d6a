"""Rollouts: a policy's answers to prompts, and the rows of them that it is trained on.

B rows, T tokens of a row.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.loop import on_each_device
from genai_jax.decoding.requests import Request
from genai_jax.decoding.results import Generated
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.heads import ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.objectives.token_log_probs import score_rows
from genai_jax.parallel.sharding import over_rows
from genai_jax.rl.rewards import Sample
from genai_jax.training.loop import BatchError
from genai_jax.types import Batch

_CHUNK = 16  # tokens of a prompt that are read at a time: prompts are short here
_TOGETHER = 16  # different prompts that are read at a time
_SHARE = 16  # answers that are worth a device of their own, which needs programs of its own


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How answers are drawn.

    There are no filters, such as top-p: the ratio of two policies would need those of both.

    Attributes:
        prompts: Prompts of a step.
        group: Answers to each of them.
        max_tokens: Most tokens of an answer, the one that ends it included.
        draws: Most draws of a step, each of `prompts` others: where answers to a prompt are all
            worth the same, another one takes its place (DAPO's dynamic sampling), as far as they
            reach. A step then reports of the answers that it learns from.
        temperature: Divides the logits, in the draw and in every log-probability.
        rows: Answers that are drawn at a time; 0 is all of a step.
        most_gap: Largest difference, in nats, between the log-probability with which a token was
            drawn and the one that training computes for it, before the run stops.
    """

    prompts: int = 32
    group: int = 4
    max_tokens: int = 32
    draws: int = 1
    temperature: float = 1.0
    rows: int = 0
    most_gap: float = 1e-2

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("prompts", "group", "max_tokens", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"`temperature` must be above 0; got {self.temperature}. 1 is the model's own "
                "distribution; without chance there is nothing to learn from."
            )
        if self.rows < 0:
            raise ValueError(f"`rows` must be at least 0; got {self.rows}.")

    @property
    def answers(self) -> int:
        """Answers of a step."""
        return self.prompts * self.group


class Prompt(NamedTuple):
    """What is asked.

    Attributes:
        ids: As the policy reads it.
        text: As people read it.
        task: Whatever graders need.
    """

    ids: Int[np.ndarray, " n"]
    text: str
    task: Any = None


class Rollouts(NamedTuple):
    """Answers of a policy.

    Attributes:
        prompts: Of each answer; those of a group are neighbours.
        answers: What was drawn.
        weights_step: Completed updates of the weights that drew.
    """

    prompts: tuple[Prompt, ...]
    answers: tuple[Generated, ...]
    weights_step: int

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Give the answers as rewards take them."""
        made = []
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            ended = answer.reason == "stop"
            text = tokenizer.decode(answer.tokens[: len(answer.tokens) - ended])
            made.append(Sample(prompt.text, text, prompt.ids, answer.tokens, ended, prompt.task))
        return made


def draw_rollouts(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    *,
    length: int,
    seed: int,
    step: int,
    stop_ids: Sequence[int],
    vocab_size: int,
    purpose: str = "rollouts",
    check: Callable[[], None] = lambda: None,
) -> Rollouts:
    """Have a policy answer prompts; a function of its weights and these arguments alone.

    The number of devices changes rounding, as it does in training.

    Args:
        model: The policy; replicated over a mesh, it draws on all devices that have enough to do.
        prompts: What is asked.
        config: How often and how.
        length: Most tokens of a prompt and its answer.
        seed: Of the run.
        step: Completed updates of the policy.
        stop_ids: Tokens that end an answer.
        vocab_size: Ids that may be drawn.
        purpose: What the noise is for; other purposes give other noise.
        check: Is called every few tokens; may raise, to give up.

    Raises:
        ValueError: If a prompt leaves no room for an answer.
    """
    each = [prompt for prompt in prompts for _ in range(config.group)]
    sampling = SamplingConfig(config.temperature)
    first = crc32(f"{purpose} {seed} {step}".encode())
    requests = [
        Request(
            prompt.ids,
            sampling,
            config.max_tokens,
            (first + number) % 2**32,
            stop_ids,
            overflow="error",
        )
        for number, prompt in enumerate(each)
    ]
    copies = on_each_device(model, max(1, len(requests) // _SHARE))
    size = -(-len(prompts) // len(copies)) * config.group  # no group is cut
    rows = max(2, min(size, -(-config.rows // len(copies)) or size))

    def draw(model: LanguageModel, share: Sequence[Request]) -> list[Generated]:
        engine = Engine(
            model,
            rows=rows,
            context=length,
            vocab_size=vocab_size,
            chunk=_CHUNK,
            together=min(_TOGETHER, rows - 1),
            prefixes=int(rows == 2),  # where prompts are read one by one
        )
        return engine.run(share, check)

    shares = [requests[start : start + size] for start in range(0, len(requests), size)]
    with ThreadPoolExecutor(len(copies)) as pool:  # a device computes while its thread waits
        drawn = list(pool.map(draw, copies, shares))
    return Rollouts(tuple(each), tuple(answer for share in drawn for answer in share), step)


def rollout_rows(rollouts: Rollouts, length: int) -> Batch:
    """Lay answers out as rows: `targets[t]` follows `tokens[t]`, and counts where it was drawn.

    Args:
        rollouts: The answers.
        length: T.

    Returns:
        `tokens`, `targets`, `loss_mask`, `drawn_log_probs` [B, T]; `lengths` (tokens of the row),
        `ended` (1 where an answer has ended by itself) and `weights_step` [B].

    Raises:
        ValueError: If an answer with its prompt is longer than a row.
    """
    count = len(rollouts.answers)
    tokens = np.zeros((count, length), np.int32)
    mask = np.zeros((count, length), np.float32)
    drawn = np.zeros((count, length), np.float32)
    lengths = np.zeros(count, np.int32)
    for row, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.answers, strict=True)):
        ids = np.concatenate([prompt.ids, answer.tokens])
        if len(ids) > length:
            raise ValueError(
                f"a row must hold a prompt and its answer; got {len(prompt.ids)} and "
                f"{len(answer.tokens)} tokens for {length}. Raise --length, or lower "
                "--rollouts.max-tokens."
            )
        tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        answered = slice(len(prompt.ids) - 1, len(ids) - 1)
        mask[row, answered] = 1
        drawn[row, answered] = answer.drawn_log_probs
    targets = np.concatenate([tokens[:, 1:], np.zeros((count, 1), np.int32)], axis=1)
    return {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": mask,
        "drawn_log_probs": drawn,
        "lengths": lengths,
        "ended": np.array([x.reason == "stop" for x in rollouts.answers], np.float32),
        "weights_step": np.full(count, rollouts.weights_step, np.int32),
    }


def make_scorer(
    mesh: Mesh, temperature: float
) -> Callable[[LanguageModel, LanguageModel | None, ScalarModel | None, Batch], Batch]:
    """Make `(policy, reference, critic, rows) -> rows with what the three say of them`.

    The policy's log-probabilities become `old_log_probs`, those of the reference `ref_log_probs`,
    and what the critic says `old_values` [B, T]. Where there is none its field is missing.

    Args:
        mesh: Its devices share the rows.
        temperature: That of the draw.
    """

    def score(
        policy: LanguageModel,
        reference: LanguageModel | None,
        critic: ScalarModel | None,
        tokens: Int[Array, "b t"],
        targets: Int[Array, "b t"],
    ) -> dict[str, Float[Array, "b t"]]:
        def log_probs(model: LanguageModel) -> Float[Array, "b t"]:
            return score_rows(model, tokens, targets, temperature=temperature).log_probs

        found = {"old_log_probs": log_probs(policy)}
        if reference is not None:
            found["ref_log_probs"] = log_probs(reference)
        if critic is not None:
            found["old_values"] = critic(tokens)
        return found

    jitted = jax.jit(over_rows(score, mesh, (False, False, False, True, True)))

    def scored(
        policy: LanguageModel,
        reference: LanguageModel | None,
        critic: ScalarModel | None,
        rows: Batch,
    ) -> Batch:
        return rows | jitted(policy, reference, critic, rows["tokens"], rows["targets"])

    return scored


class RolloutError(BatchError):
    """Answers were drawn with other probabilities than those that training computes."""


def check_gap(rows: Batch, most: float) -> float:
    r"""Measure how far two ways to compute the same probabilities are apart.

    $\max_t |\log p_{drawn} - \log \pi_{old}|$ over counted tokens: zero but for rounding, unless
    the weights that drew were others, or the temperature was.

    Args:
        rows: With `drawn_log_probs`, `old_log_probs` and `loss_mask`.
        most: The largest that is accepted.

    Raises:
        RolloutError: If it is larger.
    """
    difference = jnp.abs(rows["drawn_log_probs"] - rows["old_log_probs"])
    gap = float(jnp.max(jnp.where(rows["loss_mask"] > 0, difference, 0.0)))
    if not gap <= most:
        raise RolloutError(
            "what is drawn must have the probabilities that training computes; they differ by up "
            f"to {gap:.3g} nats, more than {most:g}. The weights that drew are others, or too "
            "imprecise: --model.dtype float32, or a larger --rollouts.most-gap."
        )
    return gap
