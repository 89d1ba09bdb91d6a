"""Experience: what a policy answered, what that earned, and what is to be learnt from it.

The batches of reinforcement learning. One is a function of the train state, the seed and the step,
so that a run that was stopped goes on as if it had not been.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.requests import ContextError
from genai_jax.models.heads import ActorCritic
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import merge_lora, without_lora
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.rl.dynamic_sampling import Drawn, draw_differing
from genai_jax.rl.kl_control import gain_of
from genai_jax.rl.rewards import Reward, RewardPolicy, reward_samples
from genai_jax.rl.rollouts import (
    Prompt,
    RolloutConfig,
    Rollouts,
    check_gap,
    draw_rollouts,
    make_scorer,
    rollout_rows,
)
from genai_jax.rl.targets import AdvantageConfig, rollout_targets
from genai_jax.training.json_lines import JsonLines
from genai_jax.training.loop import BatchError, StepError
from genai_jax.training.state import TrainState
from genai_jax.types import Batch, PyTree


@runtime_checkable
class Prompts(Protocol):
    """Prompts by number, without end."""

    def take(self, first: int, count: int) -> Sequence[Prompt]:
        """Give some prompts; a pure function of their numbers."""
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
        advantages: How scores become advantages; groups are those of the rollouts.
        mesh: Its devices share the rows of the update.
        adapted: Whether the policy has adapters. Without them it is the reference, and to write
            they are merged; otherwise the reference is in the context.
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
    advantages: AdvantageConfig
    mesh: Mesh
    adapted: bool = False
    check: Callable[[], None] = lambda: None
    timing: JsonLines | None = None
    say: Callable[[str], None] = print
    _faults: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Prepare the programs."""
        self._score = make_scorer(self.mesh, self.config.temperature)
        self._estimate = jax.jit(functools.partial(with_targets, self.advantages))
        self._merge = jax.jit(merge_lora)

    def draw(
        self,
        state: TrainState,
        asked: Sequence[Prompt],
        seed: int,
        group: int,
        *,
        purpose: str = "rollouts",
    ) -> Rollouts:
        """Have the policy of a state answer prompts.

        Args:
            state: Whose policy.
            asked: What is asked.
            seed: Of the noise.
            group: Answers to each.
            purpose: What the noise is for.

        Raises:
            BatchError: If a prompt leaves no room for an answer.
        """
        policy = policy_of(state)
        try:
            return draw_rollouts(
                self._merge(policy) if self.adapted else policy,
                asked,
                replace(self.config, group=group),
                length=self.length,
                seed=seed,
                step=int(state.step),
                stop_ids=self.stop_ids,
                vocab_size=self.tokenizer.vocab_size,
                purpose=purpose,
                check=self.check,
            )
        except ContextError as error:
            raise BatchError(
                f"a row must hold a prompt and its answer: {error} Here that is a larger --length, "
                "or fewer --rollouts.max-tokens, and then a new run."
            ) from error

    def score(self, state: TrainState, rows: Batch) -> Batch:
        """Add what policy, reference and critic of a state say of answers."""
        policy = policy_of(state)
        reference = (state.context or {}).get("reference")
        if self.adapted:
            reference = without_lora(policy)
        critic = state.model.critic if isinstance(state.model, ActorCritic) else None
        rows = jax.device_put(rows, batch_sharding(self.mesh))
        return self._score(policy, reference, critic, rows)

    def batch(self, step: int, state: Callable[[], TrainState]) -> Batch:
        """Draw and judge the answers of a step.

        Args:
            step: Completed steps.
            state: Gives the state after them.

        Raises:
            RolloutError: If answers were drawn with other probabilities than training computes.
            RewardError: If a reward fails and the run is to stop then.
        """
        now = jax.block_until_ready(state())  # the updates before are no part of the rollouts
        seconds = dict.fromkeys(("rollout_seconds", "reward_seconds", "scoring_seconds"), 0.0)
        (rollouts, earned), draws = draw_differing(
            lambda draw: self._drawn(now, step, draw, seconds),
            wanted=self.config.prompts,
            group=self.config.group,
            most=self.config.draws,
        )
        self._warn(earned.faults)
        began = time.perf_counter()
        rows = rollout_rows(rollouts, self.length) | {
            "score": earned.scores.astype(np.float32),
            "valid": earned.valid.astype(np.float32),
        }
        rows = self.score(now, rows)
        gap = check_gap(rows, self.config.most_gap)
        known = {name: x for name, x in now.context.items() if name != "reference"}
        rows = self._estimate(rows, known)
        jax.block_until_ready(rows)
        seconds["scoring_seconds"] = time.perf_counter() - began
        if self.timing is not None:
            self.timing.append({"step": step + 1, **seconds, "gap": gap, "draws": draws})
        return rows

    def _drawn(self, state: TrainState, step: int, draw: int, seconds: dict[str, float]) -> Drawn:
        """Draw answers to prompts that no other draw has, and reward them; count the time."""
        clock = [time.perf_counter()]
        count = self.config.prompts
        asked = self.prompts.take((step * self.config.draws + draw) * count, count)
        purpose = f"rollouts {draw}" if draw else "rollouts"
        rollouts = self.draw(state, asked, self.seed, self.config.group, purpose=purpose)
        clock.append(time.perf_counter())
        earned = reward_samples(self.reward, rollouts.samples(self.tokenizer), self.rewarding)
        clock.append(time.perf_counter())
        seconds["rollout_seconds"] += clock[1] - clock[0]
        seconds["reward_seconds"] += clock[2] - clock[1]
        return Drawn(rollouts, earned)

    def _warn(self, faults: Sequence[str]) -> None:
        """Say once what goes wrong."""
        for fault in faults:
            if fault not in self._faults:
                self._faults.add(fault)
                self.say(f"WARNING: a reward failed, and its answers are left out: {fault}")

    def __enter__(self) -> "Experience":
        return self

    def __exit__(self, *error: object) -> None:
        """Let nothing go: the engine is made anew for every step."""


def policy_of(state: TrainState) -> LanguageModel:
    """Take the policy out of a state, from beside its critic if it has one."""
    model = state.model
    return model.policy if isinstance(model, ActorCritic) else model


def with_targets(config: AdvantageConfig, rows: Batch, context: Mapping[str, PyTree]) -> Batch:
    """Turn scores into what is learnt, and add what is reported of every answer.

    Args:
        config: How.
        rows: Of rollouts, with `score` and `valid` [B] and what `make_scorer` adds; the answers to
            a prompt are neighbours.
        context: With `beta`, and `reward_moments` where scores are normalised.

    Returns:
        The rows for the objective and the step, with `metrics/...` for the report.
    """
    mask, valid = rows["loss_mask"], rows["valid"] > 0
    to_reference = jnp.zeros_like(mask)
    if "ref_log_probs" in rows:
        to_reference = (rows["old_log_probs"] - rows["ref_log_probs"]) * mask
    raw = jnp.where(valid, rows["score"], jnp.nan)
    scores = raw
    if "reward_moments" in context:
        scores = gain_of(context["reward_moments"])(raw)
    targets = rollout_targets(
        config,
        scores,
        mask,
        to_reference,
        context["beta"],
        ended=rows["ended"] > 0,
        values=rows.get("old_values"),
    )
    kept = ("tokens", "targets", "old_log_probs", "ref_log_probs", "old_values", "weights_step")
    counted = targets.counted.astype(jnp.float32)
    metrics = {"reward": rows["score"], "final_score": targets.scores}
    if "ref_log_probs" in rows:
        # k1 over an answer: unbiased for the divergence of the answers' distributions.
        metrics["kl"] = to_reference.sum(-1)
    return {
        **{name: rows[name] for name in kept if name in rows},
        "loss_mask": targets.loss_mask,
        "advantages": targets.advantages,
        "returns": targets.returns,
        "scores": raw,
        **{f"metrics/rollout_{name}": x for name, x in metrics.items()},
        **{f"counts/rollout_{name}": counted for name in metrics},
        "metrics/rollout_tokens": mask.sum(-1),
        "metrics/rollout_ended": rows["ended"],
        "metrics/rollout_excluded": 1 - counted,
    }


def make_on_policy_check(most: float) -> Callable[[Mapping[str, float]], None]:
    r"""Make what refuses a step that did not begin with the policy that wrote its rows.

    Args:
        most: Largest mean $|\log \pi / \pi_{old}|$ in the first update of a step, in nats a token:
            above rounding.

    Raises:
        StepError: By what is made, if a step's metrics say that it was not so.
    """

    def check(values: Mapping[str, float]) -> None:
        ratio, stale = values.get("first_log_ratio", 0.0), values.get("stale", 0.0)
        if ratio > most:
            raise StepError(
                "the first update of a step must find the probabilities of who wrote its rows; "
                f"they differ by {ratio:.3g} nats a token, more than {most:g}"
            )
        if stale > 0:
            raise StepError(
                "rows must be written by the weights that a step begins with; "
                f"{stale:.1%} of them carry the number of another step"
            )

    return check
