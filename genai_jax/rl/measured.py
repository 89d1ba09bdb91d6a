"""What a policy has become: its answers to prompts that it does not learn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.task_sets import held_out_tasks
from genai_jax.evaluation.task_accuracy import measure_tasks
from genai_jax.models.lora import merge_lora
from genai_jax.rl.experience import Experience, Prompts, policy_of
from genai_jax.rl.policy_config import PolicyConfig
from genai_jax.rl.rewards import Sample, reward_samples
from genai_jax.rl.rollouts import rollout_rows
from genai_jax.training.fit import Say
from genai_jax.training.state import TrainState

_SEED = 0  # of the noise: the same for every run
_SHOWN = 4


@dataclass
class Measured:
    """Evaluates a policy.

    Attributes:
        config: Of the run.
        renderer: How tasks are asked.
        prompts: That are held out.
        experience: Draws, scores and rewards.
        check: Is called every few tokens; may raise, to give up.
    """

    config: PolicyConfig
    renderer: ChatRenderer
    prompts: Prompts
    experience: Experience
    check: Callable[[], None]
    _last: Sequence[Sample] = field(default_factory=tuple)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure answers drawn as those are that it learns from and, of tasks, the likeliest.

        Returns:
            `reward` and `kl` (nats an answer, from the reference, by k1) as means over held-out
            prompts, `tokens` and `ended` of their answers; `gold` of replies; shares of tasks that
            the likeliest answer gets exactly right.
        """
        asked = self.prompts.take(0, self.config.measured)
        # One answer to each; of a step's rows as many at a time.
        rollouts = self.experience.draw(state, asked, _SEED, 1, purpose="evaluation")
        samples = self._last = rollouts.samples(self.experience.tokenizer)
        earned = reward_samples(self.experience.reward, samples, self.config.rewarding)
        values = {
            "reward": float(earned.scores[earned.valid].mean()) if earned.valid.any() else np.nan,
            "tokens": float(np.mean([len(sample.answer_ids) for sample in samples])),
            "ended": float(np.mean([sample.ended for sample in samples])),
        }
        # As many rows more as the devices need; they are cut off again.
        count = len(samples)
        whole = count + -count % self.experience.mesh.size
        rows = rollout_rows(rollouts, self.config.length)
        rows = {name: np.resize(x, (whole, *x.shape[1:])) for name, x in rows.items()}
        rows = {n: x[:count] for n, x in jax.device_get(self.experience.score(state, rows)).items()}
        apart = (rows["old_log_probs"] - rows["ref_log_probs"]) * rows["loss_mask"]
        values["kl"] = float(apart.sum(-1).mean())
        if self.config.ask == "replies":
            values["gold"] = float(np.mean([gold_reward(s.task, s.answer) for s in samples]))
        return values | self._accuracies(state)

    def _accuracies(self, state: TrainState) -> dict[str, float]:
        if self.config.ask != "tasks":
            return {}
        policy = policy_of(state)
        model = jax.jit(merge_lora)(policy) if self.experience.adapted else policy
        values: dict[str, float] = {}
        for difficulty, tasks in held_out_tasks(self.config.tasks).items():
            shares = measure_tasks(
                model,
                self.renderer,
                tasks,
                max_tokens=self.config.rollouts.max_tokens,
                check=self.check,
            )
            values |= {f"{difficulty}/{name}": share for name, share in shares.items()}
        return values

    def sample(self, state: TrainState, say: Say) -> dict[str, str]:
        """Show some of the answers that were measured last."""
        lines = [f"{sample.prompt}\n  {sample.answer!r}" for sample in self._last]
        for line in lines[:_SHOWN]:
            say("\n".join("  | " + part for part in line.split("\n")))
        return {".txt": "\n".join(lines) + "\n"}
