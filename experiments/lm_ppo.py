"""Reinforcement learning from a reward model: PPO with a critic, held near its reference."""

import sys
from dataclasses import replace

from genai_jax.command_line import parse_command_line
from genai_jax.rl.algorithms import PPO
from genai_jax.rl.kl_control import KLControl
from genai_jax.rl.policy_config import PolicyConfig, RewardWeights
from genai_jax.rl.policy_run import run_policy
from genai_jax.rl.rollouts import RolloutConfig
from genai_jax.training.passes import Passes
from genai_jax.training.schedules import ScheduleConfig
from genai_jax.training.script import run_script

_REPLIES = PolicyConfig(
    workdir="runs/lm_ppo",
    steps=80,
    evaluate_every=40,
    length=112,  # the longest request has 47 tokens
    ask="replies",
    rewards=RewardWeights(model=1.0),
    rollouts=RolloutConfig(prompts=64, group=1, max_tokens=64),
    loss=PPO.loss,
    advantages=replace(PPO.advantages, missing_end="replace"),
    kl=KLControl(beta=0.05),
    passes=Passes(epochs=2, minibatches=2),
)
PRESETS: dict[str, tuple[str, PolicyConfig]] = {
    "replies": (
        "a reward model of the embedded preferences; give --init and --reward-model",
        _REPLIES,
    ),
    "adaptive": (
        "the same, with a coefficient that keeps the divergence at its target",
        replace(
            _REPLIES,
            workdir="runs/lm_ppo_adaptive",
            kl=KLControl(adaptive=True, target=6.0, horizon=2000.0),
        ),
    ),
    "tasks": (
        "the embedded tasks, by their graders; give --init",
        replace(
            _REPLIES,
            workdir="runs/lm_ppo_tasks",
            steps=100,
            evaluate_every=20,
            ask="tasks",
            rewards=RewardWeights(grade=1.0),
            rollouts=RolloutConfig(prompts=128, group=1, max_tokens=48),
        ),
    ),
    "tune": (
        "prompts of your own; give --init, --reward-model and --data",
        replace(
            _REPLIES,
            workdir="runs/ppo",
            steps=100,
            evaluate_every=20,
            ask="data",
            data="prompts.jsonl",
            length=512,
            rollouts=RolloutConfig(prompts=64, group=1, max_tokens=128),
            schedule=ScheduleConfig(1e-5, "linear", warmup_steps=10, final_fraction=0.0),
        ),
    ),
}


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    if not config.algorithm.needs_critic:
        print("ERROR: PPO has a critic; for groups take lm_grpo.py.", file=sys.stderr)
        return 2
    return run_script(config, run_policy)


if __name__ == "__main__":
    sys.exit(main())
