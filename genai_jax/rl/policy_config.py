"""The options of a run of reinforcement learning."""

import dataclasses
import math
from dataclasses import field
from typing import Literal

from genai_jax.data.tasks.task_sets import TaskConfig
from genai_jax.evaluation.tuning import TuningConfig
from genai_jax.objectives.policy_gradient import PolicyLossConfig
from genai_jax.rl.algorithms import Algorithm
from genai_jax.rl.kl_control import KLControl
from genai_jax.rl.rewards import RewardPolicy
from genai_jax.rl.rollouts import RolloutConfig
from genai_jax.rl.targets import AdvantageConfig
from genai_jax.training.passes import Passes
from genai_jax.training.schedules import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """What an answer earns: a sum of these.

    Attributes:
        grade: For a right answer, by the grader of its task or, of prompts of your own, by being
            their `answer`.
        model: Times what the reward model says.
        gold: Times the judge's own reward, which a reward model only estimates; for replies.
        per_token: Taken off for each token.
    """

    grade: float = 0.0
    model: float = 0.0
    gold: float = 0.0
    per_token: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        values = dataclasses.asdict(self)
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"the weights of rewards must be finite; got {values}.")
        if not any(values.values()):
            raise ValueError("an answer must earn something; got weights of 0 alone.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(TuningConfig):
    """A run of reinforcement learning.

    A step draws `rollouts.prompts` times `rollouts.group` answers, and makes `passes.epochs` times
    `passes.minibatches` updates of them.

    Attributes:
        init: Folder of the policy that the run begins with, which is its reference too: a run of
            ours, or a model of Hugging Face's.
        reward_model: Folder of a run of lm_reward.py, which judges; with a critic it is also what
            the critic begins as. None where no weight is on it.
        steps: Batches of answers in all; each is good for several updates.
        batch_size: Answers of a step, which the rollouts say.
        ema_decay: No average is kept: what writes is what trains.
        model: How the model computes (dtype, remat); the shape is that of `init`. Dropout would
            change the ratios, and there is none.
        ask: Prompts: tasks (the embedded ones), replies (those of the embedded preferences), or
            data (your own).
        tasks: Which of the embedded tasks.
        data: Your own prompts: JSON lines with `prompt` or `messages`, and perhaps `answer`.
        rollouts: How answers are drawn.
        rewards: What they earn.
        rewarding: What becomes of an answer whose reward fails.
        normalise_rewards: Whether scores are given the mean 0 and the deviation 1 of all before.
        advantages: How rewards become advantages; groups are those of the rollouts.
        loss: Of the policy, and of its critic.
        kl: How much a nat away from the reference costs.
        passes: Updates of a step.
        measured: Prompts that are held out, answered and measured at each evaluation.
    """

    workdir: str = "runs/policy"
    reward_model: str = ""
    steps: int = 100
    batch_size: int = field(init=False, default=0)
    ema_decay: float = field(init=False, default=0.0)
    evaluate_every: int = 20
    save_every: int = 20
    log_every: int = 5
    ask: Literal["tasks", "replies", "data"] = "tasks"
    tasks: TaskConfig = field(default_factory=lambda: TaskConfig(hard_share=0.8, practice=False))
    data: str = ""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardWeights = field(default_factory=lambda: RewardWeights(grade=1.0))
    rewarding: RewardPolicy = field(default_factory=RewardPolicy)
    normalise_rewards: bool = False
    advantages: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    kl: KLControl = field(default_factory=KLControl)
    passes: Passes = field(default_factory=Passes)
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(1e-4, "linear", warmup_steps=10, final_fraction=0.1)
    )
    measured: int = 128

    def __post_init__(self) -> None:
        """Refuse what has no meaning; take from the rollouts what must be as they say."""
        object.__setattr__(self, "batch_size", self.rollouts.answers)
        advantages = dataclasses.replace(
            self.advantages,
            group_size=self.rollouts.group,
            longest_answer=self.rollouts.max_tokens,
        )
        object.__setattr__(self, "advantages", advantages)
        loss = dataclasses.replace(self.loss, temperature=self.rollouts.temperature)
        if loss.aggregation == "constant":
            loss = dataclasses.replace(loss, constant_length=self.rollouts.max_tokens)
        object.__setattr__(self, "loss", loss)
        super().__post_init__()
        if self.measured < 1:
            raise ValueError(f"`measured` must be at least 1; got {self.measured}.")
        if self.model.dropout or self.model.attention_dropout:
            raise ValueError(
                "the ratio of two policies must be without dropout; got "
                f"{self.model.dropout} and {self.model.attention_dropout}. Leave them at 0."
            )
        if bool(self.data) != (self.ask == "data"):
            raise ValueError(
                f"prompts of your own need both --ask data and --data; got {self.ask} and "
                f"{self.data!r}."
            )
        if self.rewards.gold and self.ask != "replies":
            raise ValueError(
                f"the judge's own reward is for replies; got --ask {self.ask}. Choose --ask "
                "replies, or --rewards.gold 0."
            )
        in_loss = self.loss.kl_in_loss != "none" and self.loss.kl_coefficient is None
        if (self.kl.beta or self.kl.adaptive) and not (self.advantages.kl_in_reward or in_loss):
            raise ValueError(
                f"nothing reads `kl.beta` here; got {self.kl.beta:g}"
                f"{', adaptive' if self.kl.adaptive else ''}. Give --advantages.kl-in-reward, or "
                "an estimator --loss.kl-in-loss (its weight is --loss.kl-coefficient, or kl.beta "
                "where that is none); or --kl.beta 0."
            )
        if self.rollouts.draws > 1 and not self.advantages.drop_equal_scores:
            raise ValueError(
                "more draws take the place of groups of equal scores, which must be left out then; "
                f"got `rollouts.draws` {self.rollouts.draws}. Give "
                "--advantages.drop-equal-scores, or --rollouts.draws 1."
            )
        if self.rollouts.max_tokens >= self.length:
            raise ValueError(
                f"a row must hold a prompt and its answer; got `length` {self.length} and "
                f"`rollouts.max_tokens` {self.rollouts.max_tokens}. Raise --length."
            )

    @property
    def rows_at_once(self) -> int:
        """Rows of a microbatch of a minibatch, which devices share."""
        return super().rows_at_once // self.passes.minibatches

    @property
    def algorithm(self) -> Algorithm:
        """The losses and the way to advantages, which say what is aimed at."""
        return Algorithm(self.loss, self.advantages)
