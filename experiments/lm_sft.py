"""Fine-tunes a language model on demonstrations: whole, or by a low-rank adapter."""

import dataclasses
import sys
from dataclasses import field, replace

import jax

from genai_jax.command_line import parse_command_line
from genai_jax.data.chat_data import ChatData, ChatDataConfig, load_examples
from genai_jax.data.loader import Loader
from genai_jax.data.tasks.task_sets import TaskConfig, held_out_tasks, task_examples
from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.evaluation.starting_points import (
    StartingPoint,
    draw_model,
    read_model,
    trains,
)
from genai_jax.evaluation.task_accuracy import Answered, accuracies, answer_tasks, show_answers
from genai_jax.evaluation.tuning import TuningConfig, describe_training, open_tuning
from genai_jax.models import lm
from genai_jax.models.lora import merge_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.fit import Say, fit
from genai_jax.training.initialise import Initial, begin_with
from genai_jax.training.optimizers import OptimizerConfig
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.schedules import ScheduleConfig
from genai_jax.training.script import run_script
from genai_jax.training.setup import set_up_training
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, abstract_like
from genai_jax.training.step import check_rows


@dataclasses.dataclass(frozen=True)
class SftConfig(TuningConfig):
    """A run of supervised fine-tuning.

    Attributes:
        init: Folder of the model that the run begins with: a run of ours, or a model of Hugging
            Face's. Its shape, its tokenizer and its chat template are taken; without one parameters
            are drawn, and bytes are read.
        model: How the model computes (dtype, remat, dropout); its shape too where it is drawn.
        tasks: The embedded tasks, which are learnt where `data` names no source.
        data: Demonstrations of your own.
        answer_tokens: Most tokens of an answer when tasks are measured.
    """

    workdir: str = "runs/lm_sft"
    steps: int = 1200
    batch_size: int = 16
    evaluate_every: int = 400
    evaluation_rows: int = 32
    model: TransformerConfig = lm.TASKS
    tasks: TaskConfig = field(default_factory=TaskConfig)
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("muon", muon_momentum=0.85, weight_decay=0.0)
    )
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(1e-2, "linear", warmup_steps=20, final_fraction=0.0)
    )
    answer_tokens: int = 48

    @property
    def on_tasks(self) -> bool:
        """Whether it learns the embedded tasks."""
        return not self.data.all_sources


_SHOWN = 6  # answers, on the console

_GENTLE = SftConfig(
    workdir="runs/tuned",
    steps=300,
    batch_size=16,
    length=512,
    optimizer=OptimizerConfig(weight_decay=0.0),
    schedule=ScheduleConfig(2e-5, warmup_steps=20),
    evaluate_every=100,
    evaluate_first=True,
    evaluation_rows=16,
    save_every=100,
    log_every=20,
)
PRESETS: dict[str, tuple[str, SftConfig]] = {
    "tasks": (
        "the embedded tasks, minutes on a laptop; --init is a run of lm_pretrain.py",
        SftConfig(),
    ),
    "tune": ("demonstrations of your own, gently; give --init and --data.path", _GENTLE),
    "lora": (
        "the same by a low-rank adapter of all projections; give --init and --data.path",
        replace(
            _GENTLE,
            workdir="runs/lora",
            lora=LoraConfig(),
            schedule=ScheduleConfig(2e-4, warmup_steps=20),
        ),
    ),
}


def run_sft(config: SftConfig, stop: StopRequest) -> int:
    """Fine-tune; returns the exit code."""
    with open_tuning(config, may_be_drawn=True) as (config, run, point):
        data = load_examples(
            config.data,
            point.renderer,
            length=config.length,
            seed=config.seed,
            examples=task_examples(config.tasks, config.seed) if config.on_tasks else None,
        )
        print(data.summary, flush=True)
        point.settle(run, data=data.content_digest)
        return fine_tune(config, run, point, data, stop)


def fine_tune(
    config: SftConfig, run: RunDirectory, point: StartingPoint, data: ChatData, stop: StopRequest
) -> int:
    """Make state, step and data, and have them run."""
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches)
    state, train_step = set_up_training(
        config,
        config.optimizer,
        config.schedule,
        mesh,
        lambda: draw_model(config.model, config.lora, config.seed),
        next_token,
        **lm.GROUPS,
        trains=trains(config.lora),
    )
    print(describe_training(state.model, config.lora), flush=True)
    loss_of = make_evaluator(next_token, mesh, data.validation, config.evaluation_rows)
    measured = held_out_tasks(config.tasks) if config.on_tasks else {}
    answered: dict[str, list[Answered]] = {}

    def begin(state: TrainState) -> tuple[TrainState, Initial]:
        assert point.source is not None
        initial = read_model(point.source, abstract_like(state.model), config.lora, config.seed)
        return begin_with(state, initial.model), initial

    def evaluate(state: TrainState) -> dict[str, float]:
        model = state.averaged
        values = loss_of(model, stop.check) if len(data.validation) else {}
        merged = jax.jit(merge_lora)(model) if config.lora.rank else model
        for difficulty, tasks in measured.items():
            answered[difficulty] = answer_tasks(
                merged,
                point.renderer,
                tasks,
                max_tokens=config.answer_tokens,
                check=stop.check,
            )
            shares = accuracies(answered[difficulty])
            values |= {f"{difficulty}/{name}": share for name, share in shares.items()}
        return values

    def sample(state: TrainState, say: Say) -> dict[str, str]:
        """Show what was measured just before."""
        say(show_answers(answered["easy"], most=_SHOWN))
        return {".txt": "\n".join(show_answers(each) for each in answered.values()) + "\n"}

    _, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(data.train, config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=evaluate,
        sample=sample if measured else None,
        unit="tokens",
        units_per_row=config.length,
        flops_per_unit=lm.flops_per_token(config.model, config.length),
        loss_unit="nats per token",
        init=begin if config.init else None,
    )
    if exit_code == 0:
        print(f"talk with it:  python experiments/lm_sample.py --chat --model {run.path}")
    return exit_code


def main() -> int:
    """Read the command line and run."""
    return run_script(parse_command_line(PRESETS, description=__doc__ or ""), run_sft)


if __name__ == "__main__":
    sys.exit(main())
