"""Aligns a language model with preferences: DPO, IPO, cDPO, robust DPO, ORPO, SimPO or KTO."""

import dataclasses
import io
import sys
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genai_jax.command_line import parse_command_line
from genai_jax.data.loader import Loader
from genai_jax.data.preference_data import (
    AnswerData,
    PreferenceDataConfig,
    load_judged,
    load_preferences,
)
from genai_jax.data.scored_rows import score_rows_once
from genai_jax.data.tasks.gold_sets import GoldConfig, gold_sides
from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.evaluation.starting_points import (
    StartingPoint,
    draw_model,
    read_model,
    trains,
)
from genai_jax.evaluation.tuning import TuningConfig, describe_training, open_tuning
from genai_jax.models import lm
from genai_jax.models.lora import without_lora
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.kto import KTOConfig, make_kto
from genai_jax.objectives.preference import PreferenceConfig, make_preference
from genai_jax.objectives.reference import make_reference_scorer
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.fit import fit
from genai_jax.training.initialise import Initial, begin_with
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.schedules import ScheduleConfig
from genai_jax.training.script import run_script
from genai_jax.training.setup import set_up_training
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, abstract_like
from genai_jax.training.step import TrainStep, check_rows

Loss = Literal["preference", "kto"]


# The embedded judge's odds are e^{1.5 r}: at 0.1 the target is π_ref e^{15 r}, far off.
_BETA = 0.5


@dataclasses.dataclass(frozen=True)
class DpoConfig(TuningConfig):
    """A run of preference optimisation.

    Attributes:
        init: Folder of the model that it begins with, which is its reference too: a run of ours, or
            a model of Hugging Face's.
        model: How the model computes (dtype, remat); the shape is that of `init`. Dropout would
            change the log-ratios, and there is none.
        objective: preference (pairs of answers) or kto (answers that are good or bad by themselves;
            of pairs, the better and the other one).
        preference: Which loss on pairs.
        kto: How good and bad answers count.
        gold: The embedded preferences, which are learnt where `data` names no source.
        data: Preferences of your own; of a ranking the best and the worst answer are taken.
    """

    workdir: str = "runs/lm_dpo"
    steps: int = 240
    batch_size: int = 32
    evaluate_every: int = 120
    objective: Loss = "preference"
    preference: PreferenceConfig = field(default_factory=lambda: PreferenceConfig(beta=_BETA))
    kto: KTOConfig = field(default_factory=KTOConfig)
    gold: GoldConfig = field(default_factory=lambda: GoldConfig(preferences=7680))
    data: PreferenceDataConfig = field(default_factory=lambda: PreferenceDataConfig(answers=2))

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if self.model.dropout or self.model.attention_dropout:
            raise ValueError(
                "a log-ratio to the reference must be without dropout; got "
                f"{self.model.dropout} and {self.model.attention_dropout}. Leave them at 0."
            )
        if self.data.answers != 2:
            raise ValueError(
                f"a preference loss takes two answers; got `data.answers` {self.data.answers}. "
                "Leave it at 2, or train a reward model on rankings: lm_reward.py."
            )
        if self.reference == "adapter_off" and not self.lora.rank:
            raise ValueError(
                "`reference` adapter_off needs an adapter; got --lora.rank 0. Choose a rank, or "
                "the reference cached."
            )

    @property
    def reference(self) -> str:
        """Where the reference's log-probabilities come from; none where the loss has none."""
        if self.objective == "kto":
            return self.kto.reference
        return self.preference.reference if self.preference.needs_reference else "none"

    @property
    def on_gold(self) -> bool:
        """Whether it learns the embedded preferences."""
        return not self.data.all_sources


def _with(loss: str, **options: Any) -> DpoConfig:
    preference = PreferenceConfig(loss=loss, **options)  # type: ignore[arg-type]
    return DpoConfig(workdir=f"runs/{loss}", preference=preference)


PRESETS: dict[str, tuple[str, DpoConfig]] = {
    "dpo": ("direct preference optimisation; give --init", DpoConfig()),
    "ipo": ("its log-ratios stay finite whatever the labels", _with("ipo")),
    "cdpo": (
        "labels that may be flipped, hedged against",
        _with("cdpo", beta=_BETA, label_smoothing=0.1),
    ),
    "robust": (
        "labels that may be flipped, corrected for",
        _with("robust", beta=_BETA, label_smoothing=0.1),
    ),
    "orpo": ("no reference, beside likelihood", _with("orpo")),
    "simpo": ("no reference, mean log-probabilities", _with("simpo", beta=2.0, gamma=1.0)),
    "kto": (
        "answers that are good or bad by themselves",
        DpoConfig(workdir="runs/kto", objective="kto"),
    ),
    "tune": (
        "dpo on preferences of your own, gently, by an adapter; give --init and --data.path",
        DpoConfig(
            workdir="runs/preferred",
            steps=400,
            evaluate_every=100,
            batch_size=16,
            length=512,
            lora=LoraConfig(),
            preference=PreferenceConfig(reference="adapter_off"),
            schedule=ScheduleConfig(5e-5, "linear", warmup_steps=20, final_fraction=0.0),
        ),
    ),
}


def run_dpo(config: DpoConfig, stop: StopRequest) -> int:
    """Align; returns the exit code."""
    with open_tuning(config) as (config, run, point):
        load = load_judged if config.objective == "kto" else load_preferences
        data = load(
            config.data,
            point.renderer,
            length=config.length,
            seed=config.seed,
            **_embedded(config),
        )
        print(data.summary, flush=True)
        point.settle(run, data=data.content_digest)
        return align(config, run, point, data, stop)


def _embedded(config: DpoConfig) -> dict[str, Any]:
    """Give the embedded preferences, under the name that is asked for."""
    name = "judged" if config.objective == "kto" else "preferences"
    return {name: gold_sides(config.gold, config.seed)} if config.on_gold else {}


def make_training(config: DpoConfig, mesh: Mesh) -> tuple[TrainState, TrainStep, Any]:
    """Make the first state, the step, and what evaluates: (objective, means or None)."""
    base_of = without_lora if config.lora.rank else None
    if config.objective == "kto":
        objective, means = make_kto(config.kto, base_of=base_of)
    else:
        objective, means = make_preference(config.preference, base_of=base_of), None

    def context() -> dict[str, Any]:
        # Replaced by what the run begins with.
        live = config.reference == "live"
        no_lora = LoraConfig(rank=0)
        return {"reference": draw_model(config.model, no_lora, 1)} if live else {}

    state, train_step = set_up_training(
        config,
        config.optimizer,
        config.schedule,
        mesh,
        lambda: draw_model(config.model, config.lora, config.seed),
        objective,
        **lm.GROUPS,
        context=context,
        trains=trains(config.lora),
        batch_means=means,
    )
    return state, train_step, (objective, means)


def with_reference(
    config: DpoConfig,
    run: RunDirectory,
    point: StartingPoint,
    data: AnswerData,
    mesh: Mesh,
    check: Callable[[], None],
) -> AnswerData:
    """Put the reference's log-probabilities into the rows; a run keeps them for its next start."""
    if config.reference != "cached":
        return data
    path = run.path / "reference.npz"
    if path.exists():
        with np.load(path) as kept:
            scores = {name: kept[name] for name in ("train", "validation")}
    else:
        assert point.source is not None
        like = jax.eval_shape(lambda: draw_model(config.model, LoraConfig(rank=0), 0))
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
        initial = point.source(like)
        # What it begins with is read later, when the folder may have a newer checkpoint.
        run.require_identity({"init": initial.digest})
        score = make_reference_scorer(initial.model, mesh)
        rows = {"train": data.train.in_order(), "validation": data.validation}
        size = config.evaluation_rows
        scores = {
            name: score_rows_once(x, score, batch_size=size, check=check)
            for name, x in rows.items()
        }
        content = io.BytesIO()
        np.savez(content, **scores)
        write_atomically(path, content.getvalue())
    return replace(
        data,
        train=data.train.with_columns({"ref_log_probs": scores["train"]}),
        validation=data.validation.with_columns({"ref_log_probs": scores["validation"]}),
    )


def align(
    config: DpoConfig, run: RunDirectory, point: StartingPoint, data: AnswerData, stop: StopRequest
) -> int:
    """Make state, step and data, and have them run."""
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches)
    state, train_step, (objective, means) = make_training(config, mesh)
    print(
        f"{describe_training(state.model, config.lora)}; reference: {config.reference}", flush=True
    )
    data = with_reference(config, run, point, data, mesh, stop.check)
    rows, size = data.validation, config.evaluation_rows
    measure = make_evaluator(objective, mesh, rows, size)
    measure_means = None if means is None else make_evaluator(means, mesh, rows, size)

    def begin(state: TrainState) -> tuple[TrainState, Initial]:
        assert point.source is not None
        initial = read_model(point.source, abstract_like(state.model), config.lora, config.seed)
        state = begin_with(state, initial.model)
        if "reference" in state.context:
            reference = jax.tree.map(jnp.copy, without_lora(initial.model))
            state = replace(state, context=state.context | {"reference": reference})
        return state, initial

    def evaluate(state: TrainState) -> dict[str, float]:
        if not len(rows):
            return {}
        context = dict(state.context)
        if measure_means is not None:
            found = measure_means(state.averaged, stop.check, context)
            context["batch_means"] = {name: jnp.float32(x) for name, x in found.items()}
        return measure(state.averaged, stop.check, context)

    _, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(data.train, config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=evaluate,
        unit="answers",
        units_per_row=data.num_answers,
        flops_per_unit=config.length * lm.flops_per_token(config.model, config.length),
        loss_unit="of the preference loss",
        init=begin,
    )
    if exit_code == 0:
        print(f"talk with it:  python experiments/lm_sample.py --chat --model {run.path}")
    return exit_code


def main() -> int:
    """Read the command line and run."""
    return run_script(parse_command_line(PRESETS, description=__doc__ or ""), run_dpo)


if __name__ == "__main__":
    sys.exit(main())
