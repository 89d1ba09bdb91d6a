"""A run of reinforcement learning: what PPO and the group methods have in common.

The way of a batch: prompts → `rollouts` (the policy answers) → `rewards` → `rollouts.make_scorer`
(log-probabilities and values, by the functions that train) → `targets` (advantages) → the train
step, in epochs and minibatches → `kl_control`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from genai_jax.evaluation.reward_runs import RewardRun, draw_scalar_model, load_reward_run
from genai_jax.evaluation.starting_points import (
    StartingPoint,
    draw_model,
    read_model,
    trains,
)
from genai_jax.evaluation.text_runs import adopt
from genai_jax.evaluation.tuning import describe_training, open_tuning
from genai_jax.models import lm
from genai_jax.models.heads import ActorCritic, ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import with_base, without_lora
from genai_jax.objectives.policy_gradient import make_policy_gradient
from genai_jax.objectives.row_metrics import WithRowMetrics
from genai_jax.parallel.mesh import make_mesh
from genai_jax.rl.algorithms import optimum_of
from genai_jax.rl.asked import Asked, load_prompts, make_reward
from genai_jax.rl.experience import Experience, make_on_policy_check
from genai_jax.rl.kl_control import first_context, make_next_context
from genai_jax.rl.measured import Measured
from genai_jax.rl.policy_config import PolicyConfig
from genai_jax.training.fit import fit
from genai_jax.training.initialise import Initial, begin_with
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.setup import set_up_training
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, abstract_like
from genai_jax.training.step import TrainStep


def run_policy(config: PolicyConfig, stop: StopRequest) -> int:
    """Train a policy; returns the exit code."""
    if config.rewards.model and not config.reward_model:
        raise ValueError(
            "a weight on the reward model needs one; got none. Give --reward-model FOLDER, a run "
            "of lm_reward.py, or --rewards.model 0."
        )
    judge = load_reward_run(config.reward_model) if config.reward_model else None
    with open_tuning(config, config.reward_model) as (config, run, point):
        asked = load_prompts(config, point.renderer)
        judged = {"judge": judge.digest} if judge else {}
        point.settle(run, prompts=asked.digest, **judged)
        return train_policy(config, run, point, asked, judge, stop)


def make_training(config: PolicyConfig, mesh: Mesh) -> tuple[TrainState, TrainStep]:
    """Make the first state, and the step: policy and critic, objective, optimizer."""

    def model() -> LanguageModel | ActorCritic:
        policy = draw_model(config.model, config.lora, config.seed)
        if not config.algorithm.needs_critic:
            return policy
        critic = draw_scalar_model(config.model, config.lora, config.seed + 1, init_std=0.0)
        return ActorCritic(policy, critic)

    def context() -> dict[str, Any]:
        known = first_context(config.kl, normalise_rewards=config.normalise_rewards)
        if config.lora.rank:  # the policy without its adapters is the reference
            return known
        # Replaced by what the run begins with.
        return known | {"reference": draw_model(config.model, config.lora, config.seed + 2)}

    return set_up_training(
        config,
        config.optimizer,
        config.schedule,
        mesh,
        model,
        WithRowMetrics(make_policy_gradient(config.loss)),
        **lm.GROUPS,
        context=context,
        trains=trains(config.lora),
        passes=config.passes,
        next_context=make_next_context(config.kl),
    )


def begin(
    config: PolicyConfig, point: StartingPoint, judge: RewardRun | None, state: TrainState
) -> tuple[TrainState, Initial]:
    """Put the policy, its critic and its reference into a state that has made no step.

    The critic begins as the reward model, where there is one of its shape, since both read the same
    texts; else as the policy. Its head begins at zero.
    """
    assert point.source is not None
    like = abstract_like(state.model)
    policy_like = like.policy if isinstance(like, ActorCritic) else like
    initial = read_model(point.source, policy_like, config.lora, config.seed)
    model = initial.model
    if isinstance(like, ActorCritic):
        fresh = state.model.critic
        if (
            judge is not None
            and adopt(config.model, judge.model.config, config.length) == config.model
        ):
            trunk = with_base(fresh.trunk, judge.model.trunk)
        else:
            trunk = with_base(fresh.trunk, without_lora(initial.model))
        critic = ScalarModel(trunk, jax.random.key(0), init_std=0.0)
        model = ActorCritic(initial.model, critic)
        model = jax.tree.map(
            lambda x, w: jax.device_put(jnp.array(x, w.dtype), w.sharding), model, like
        )
    state = begin_with(state, model)
    if "reference" in state.context:
        reference = jax.tree.map(jnp.copy, initial.model)
        state = dataclasses.replace(state, context=state.context | {"reference": reference})
    return state, initial._replace(model=model)


def check_answers(config: PolicyConfig, mesh: Mesh) -> None:
    """Refuse answers that cannot be dealt out to devices, microbatches and minibatches.

    Raises:
        ValueError: Saying how many could be.
    """
    rollouts, parts = config.rollouts, config.microbatches * config.passes.minibatches
    if rollouts.answers % (unit := mesh.size * parts):
        fitting = unit // math.gcd(unit, rollouts.group)
        near = max(fitting, round(rollouts.prompts / fitting) * fitting)
        raise ValueError(
            "the answers of a step must be divisible by devices × microbatches × minibatches; got "
            f"{rollouts.prompts} × {rollouts.group} answers, {mesh.size} devices, "
            f"{config.microbatches} microbatches and {config.passes.minibatches} minibatches. "
            f"Choose --rollouts.prompts {near}."
        )


def train_policy(
    config: PolicyConfig,
    run: RunDirectory,
    point: StartingPoint,
    asked: Asked,
    judge: RewardRun | None,
    stop: StopRequest,
) -> int:
    """Make state, step and experience, and have them run."""
    mesh = make_mesh(config.fsdp)
    check_answers(config, mesh)
    state, train_step = make_training(config, mesh)
    print(
        f"{describe_training(state.model, config.lora)}\n"
        f"{optimum_of(config.algorithm, config.kl.beta)}",
        flush=True,
    )
    experience = Experience(
        prompts=asked.train,
        config=config.rollouts,
        length=config.length,
        seed=config.seed,
        tokenizer=point.tokenizer,
        stop_ids=point.renderer.end_ids,
        reward=make_reward(config, judge, point.renderer, mesh),
        rewarding=config.rewarding,
        advantages=config.advantages,
        mesh=mesh,
        adapted=config.lora.rank > 0,
        check=stop.check,
        timing=run.timing,
    )
    measured = Measured(config, point.renderer, asked.held_out, experience, stop.check)
    _, exit_code = fit(
        config,
        run,
        state,
        train_step,
        experience,
        stop=stop,
        evaluate=measured.evaluate,
        sample=measured.sample,
        unit="answers",
        loss_unit="of the surrogate",
        init=lambda state: begin(config, point, judge, state),
        check=make_on_policy_check(config.rollouts.most_gap),
    )
    if exit_code == 0:
        print(f"talk with it:  python experiments/lm_sample.py --chat --model {run.path}")
    return exit_code
