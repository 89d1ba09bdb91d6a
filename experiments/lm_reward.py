"""Trains a reward model on rankings: a number for an answer, the higher the better it is liked."""

import dataclasses
import sys
from dataclasses import field

import jax
import numpy as np
from jax.sharding import Mesh

from genai_jax.command_line import parse_command_line
from genai_jax.data.loader import Loader
from genai_jax.data.preference_data import AnswerData, PreferenceDataConfig, load_preferences
from genai_jax.data.tasks.gold_preferences import (
    answer_baseline,
    expected_accuracy,
    length_baseline,
)
from genai_jax.data.tasks.gold_sets import GoldConfig, gold_sides
from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.evaluation.reward_runs import (
    calibration_of,
    draw_scalar_model,
    make_reward_reader,
    pair_gaps,
    scale_of,
)
from genai_jax.evaluation.starting_points import (
    StartingPoint,
    read_model,
    trains,
)
from genai_jax.evaluation.text_report import kept_text
from genai_jax.evaluation.tuning import TuningConfig, describe_training, open_tuning
from genai_jax.models import lm
from genai_jax.models.heads import ScalarModel, ScoreReading, rescaled
from genai_jax.objectives.reward_model import RewardLossConfig, make_reward_model_objective
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.fit import fit
from genai_jax.training.initialise import Initial, begin_with
from genai_jax.training.optimizers import OptimizerConfig
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.schedules import ScheduleConfig
from genai_jax.training.script import run_script
from genai_jax.training.setup import set_up_training
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, abstract_like
from genai_jax.training.step import check_rows

_SCALE_ROWS = 1024  # their mean is known to a thirtieth of their deviation, or better


@dataclasses.dataclass(frozen=True)
class RewardConfig(TuningConfig):
    """A run of a reward model.

    Attributes:
        reading: Whether an answer's reward is the number of its last token alone (last), or what
            all tokens add up to there (running).
        reward_loss: How rankings are read.
        gold: The embedded preferences, which are learnt where `data` names no source.
        data: Preferences of your own.
    """

    workdir: str = "runs/lm_reward"
    steps: int = 540
    batch_size: int = 16
    evaluate_every: int = 270
    reading: ScoreReading = "running"
    reward_loss: RewardLossConfig = field(default_factory=lambda: RewardLossConfig(centring=0.01))
    gold: GoldConfig = field(
        default_factory=lambda: GoldConfig(preferences=8640, held_out=500, answers=4)
    )
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("muon", muon_momentum=0.85, weight_decay=0.0)
    )
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(4e-3, "linear", warmup_steps=20, final_fraction=0.0)
    )

    @property
    def on_gold(self) -> bool:
        """Whether it learns the embedded preferences."""
        return not self.data.all_sources


PRESETS: dict[str, tuple[str, RewardConfig]] = {
    "gold": ("the embedded preferences, minutes on a laptop; give --init", RewardConfig()),
    "tune": (
        "preferences of your own, gently; give --init and --data.path",
        RewardConfig(
            workdir="runs/reward",
            steps=600,
            evaluate_every=300,
            batch_size=16,
            length=512,
            reading="last",
            reward_loss=RewardLossConfig(),
            optimizer=OptimizerConfig(weight_decay=0.0),
            schedule=ScheduleConfig(5e-5, "linear", warmup_steps=20, final_fraction=0.0),
        ),
    ),
}


def run_reward(config: RewardConfig, stop: StopRequest) -> int:
    """Train a reward model; returns the exit code."""
    with open_tuning(config) as (config, run, point):
        data = load_preferences(
            config.data,
            point.renderer,
            length=config.length,
            seed=config.seed,
            preferences=gold_sides(config.gold, config.seed) if config.on_gold else None,
        )
        print(data.summary, flush=True)
        point.settle(run, data=data.content_digest)
        return train_reward(config, run, point, data, stop)


def train_reward(
    config: RewardConfig,
    run: RunDirectory,
    point: StartingPoint,
    data: AnswerData,
    stop: StopRequest,
) -> int:
    """Make state, step and data, have them run, and say what came of it."""
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches)
    objective = make_reward_model_objective(config.reward_loss)
    state, train_step = set_up_training(
        config,
        config.optimizer,
        config.schedule,
        mesh,
        lambda: draw_scalar_model(config.model, config.lora, config.seed, reading=config.reading),
        objective,
        **lm.GROUPS,
        trains=trains(config.lora),
    )
    print(describe_training(state.model, config.lora), flush=True)
    measure = make_evaluator(objective, mesh, data.validation, config.evaluation_rows)
    scale_rows = data.train.in_order()
    rewards_of = make_reward_reader(mesh, scale_rows, config.evaluation_rows, _SCALE_ROWS)

    def begin(state: TrainState) -> tuple[TrainState, Initial]:
        assert point.source is not None
        like = abstract_like(state.model)
        initial = read_model(point.source, like.trunk, config.lora, config.seed)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        model = ScalarModel(initial.model, key, reading=config.reading)
        # Before the training, and once more after it: rewards of mean 0 and deviation 1.
        rewards = rewards_of(model)
        model = rescaled(model, *scale_of(rewards[np.isfinite(rewards)]))
        model = jax.tree.map(lambda x, w: jax.device_put(x, w.sharding), model, like)
        return begin_with(state, model), initial._replace(model=model)

    state, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(data.train, config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=lambda state: measure(state.averaged, stop.check) if len(data.validation) else {},
        unit="answers",
        units_per_row=data.num_answers,
        flops_per_unit=config.length * lm.flops_per_token(config.model, config.length),
        loss_unit="nats a ranking",
        init=begin,
    )
    if exit_code == 0:
        rewards = rewards_of(state.averaged)
        scale_of(rewards[np.isfinite(rewards)]).save(run.path)
        report = run.folder("samples") / "report.txt"
        print(kept_text(report, lambda: final_report(config, data, mesh, state.averaged)))
    return exit_code


def final_report(config: RewardConfig, data: AnswerData, mesh: Mesh, model: ScalarModel) -> str:
    """Say how well the model knows what is preferred."""
    if not len(data.validation):
        return "nothing is held out"
    rewards = make_reward_reader(mesh, data.validation, config.evaluation_rows)(model)
    gaps = pair_gaps(rewards)
    found = calibration_of(gaps)
    lines = [
        f"held-out accuracy:  {found.accuracy:.1%} of {len(gaps):,} pairs",
        f"calibration error:  {found.error:.1%} (mean |confidence - accuracy|, ten bins)",
    ]
    if config.on_gold:
        lines += describe_gold(config, rewards)
    return "\n".join(lines)


def describe_gold(config: RewardConfig, rewards: np.ndarray) -> list[str]:
    """Compare with what can be reached, and with judges that do not read all of a text."""
    gold = config.gold
    if rewards.shape != (gold.held_out, gold.answers):
        return ["its ceiling:        unknown: not all preferences are in rows; raise --length"]
    learnt, held_out = gold.learnt_by(config.seed), gold.held_out_by(config.seed)
    known = [held_out.judgement(i) for i in range(len(rewards))]
    before = [learnt.judgement(i) for i in range(min(gold.preferences, 2000))]
    ours = expected_accuracy(known, rewards, gold.sharpness)
    best = expected_accuracy(known, np.array([x.rewards for x in known]), gold.sharpness)
    return [
        f"in expectation:     {ours.mean:.1%} (over the judge's chances, not the labels drawn)",
        f"its ceiling:        {best.mean:.1%} ± {best.error:.1%}, of the judge's own reward",
        f"by length alone:    {length_baseline(before, known).mean:.1%}",
        f"by answers alone:   {answer_baseline(before, known).mean:.1%}",
    ]


def main() -> int:
    """Read the command line and run."""
    return run_script(parse_command_line(PRESETS, description=__doc__ or ""), run_reward)


if __name__ == "__main__":
    sys.exit(main())
