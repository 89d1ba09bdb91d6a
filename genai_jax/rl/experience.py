"""Experience: what a policy answered, what that earned, and what is to be learnt from it.

The batches of reinforcement learning. One is a function of the train state, the seed and the step,
so that a run that was stopped goes on as if it had not been.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.models.heads import ActorCritic
from genai_jax.models.lm import LanguageModel
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.rl.rewards import Reward, RewardPolicy, reward_samples
from genai_jax.rl.rollouts import (
    Prompt,
    RolloutConfig,
    check_gap,
    draw_rollouts,
    make_scorer,
    rollout_rows,
)
from genai_jax.training.json_lines import JsonLines
from genai_jax.training.state import TrainState
from genai_jax.types import Batch, PyTree

Estimate = Callable[[Batch, PyTree], Batch]
"""`(rows, context) -> rows`: from rewards to advantages, and to returns where there is a critic.

The context is without its reference. The rows have `score`, `valid` and `ended` [B], and what
`make_scorer` adds; those of a group are neighbours. What begins with `metrics/` is reported.
"""


class Prompts(Protocol):
    """Prompts by number, without end."""

    def __getitem__(self, number: int) -> Prompt:
        """Give a prompt; a pure function of the number."""
        ...


@dataclass
class Experience:
    """Makes the batch of a step: answers, rewards, probabilities, advantages.

    Attributes:
        prompts: What is asked.
        config: How answers are drawn.
        length: T, most tokens of a prompt and its answer.
        seed: Of the run.
        tokenizer: The policy's.
        stop_ids: Tokens that end an answer.
        reward: Of answers.
        rewarding: What becomes of answers without one.
        estimate: From rewards to advantages.
        mesh: Its devices share the rows of the update.
        writer: From the model that trains to the one that writes; where there is a critic beside
            it, or an adapter in it.
        check: Is called every few tokens; may raise, to give up.
        timing: Takes the seconds of each part.
        say: Takes warnings.
    """

    prompts: Prompts
    config: RolloutConfig
    length: int
    seed: int
    tokenizer: Tokenizer
    stop_ids: Sequence[int]
    reward: Reward
    rewarding: RewardPolicy
    estimate: Estimate
    mesh: Mesh
    writer: Callable[[Any], LanguageModel] = lambda model: getattr(model, "policy", model)
    check: Callable[[], None] = lambda: None
    timing: JsonLines | None = None
    say: Callable[[str], None] = print
    _faults: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Prepare the programs."""
        self._score = make_scorer(self.mesh, self.config.temperature)
        self._estimate = jax.jit(lambda rows, known: self.estimate(_with_metrics(rows), known))

    def batch(self, step: int, state: Callable[[], TrainState]) -> Batch:
        """Draw and judge the answers of a step.

        Args:
            step: Completed steps.
            state: Gives the state after them.

        Raises:
            RolloutError: If answers were drawn with other probabilities than training computes.
            RewardError: If a reward fails and the run is to stop then.
        """
        clock = [time.perf_counter()]
        now = state()
        asked = [self.prompts[step * self.config.prompts + i] for i in range(self.config.prompts)]
        rollouts = draw_rollouts(
            self.writer(now.model),
            asked,
            self.config,
            length=self.length,
            seed=self.seed,
            step=step,
            stop_ids=self.stop_ids,
            vocab_size=self.tokenizer.vocab_size,
            check=self.check,
        )
        rows = rollout_rows(rollouts, self.length)
        clock.append(time.perf_counter())
        earned = reward_samples(self.reward, rollouts.samples(self.tokenizer), self.rewarding)
        self._warn(earned.faults)
        clock.append(time.perf_counter())
        rows |= {
            "score": earned.scores.astype(np.float32),
            "valid": earned.valid.astype(np.float32),
        }
        rows = jax.device_put(rows, batch_sharding(self.mesh))
        critic = now.model.critic if isinstance(now.model, ActorCritic) else None
        known = dict(now.context or {})
        reference = known.pop("reference", None)
        rows = self._score(self.writer(now.model), reference, critic, rows)
        gap = check_gap(rows, self.config.most_gap)
        rows = self._estimate(rows, known)
        jax.block_until_ready(rows)
        clock.append(time.perf_counter())
        self._note(step + 1, clock, gap)
        return rows

    def _warn(self, faults: Sequence[str]) -> None:
        """Say once what goes wrong."""
        for fault in faults:
            if fault not in self._faults:
                self._faults.add(fault)
                self.say(f"WARNING: a reward failed, and its answers are left out: {fault}")

    def _note(self, step: int, clock: Sequence[float], gap: float) -> None:
        if self.timing is not None:
            names = ("rollout_seconds", "reward_seconds", "scoring_seconds")
            parts = np.diff(clock).tolist()
            self.timing.append({"step": step, **dict(zip(names, parts, strict=True)), "gap": gap})

    def __enter__(self) -> "Experience":
        return self

    def __exit__(self, *error: object) -> None:
        """Let nothing go: the engine is made anew for every step."""


def _with_metrics(rows: Batch) -> Batch:
    """Leave out what was not rewarded, and add what is reported of every answer."""
    valid = rows["valid"]
    written = rows["loss_mask"].sum(-1)
    rows = rows | {
        "loss_mask": rows["loss_mask"] * valid[:, None],
        "metrics/reward": rows["score"],
        "counts/reward": valid,
        "metrics/answer_tokens": written,
        "metrics/ended": rows["ended"],
        "metrics/excluded": 1 - valid,
    }
    if "ref_log_probs" in rows:
        # k1 over an answer: unbiased for the divergence of the answers' distributions.
        apart = (rows["old_log_probs"] - rows["ref_log_probs"]) * rows["loss_mask"]
        rows |= {"metrics/kl": apart.sum(-1), "counts/kl": valid}
    return rows
