"""Trains a transformer on text by next-token prediction, and shows what it writes."""

import dataclasses
import functools
import sys
from dataclasses import field, replace

import jax
from jax.sharding import Mesh

from genai_jax.command_line import parse_command_line
from genai_jax.data.loader import Loader
from genai_jax.data.text import TextConfig, TextData, load_text
from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import stream_text
from genai_jax.evaluation.likelihood import make_source_evaluators, make_text_evaluator
from genai_jax.evaluation.text_report import describe_pretraining, kept_text
from genai_jax.evaluation.text_runs import adopt, beginning_of, init_source
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.models import lm
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.cpu_devices import describe_devices, fastest_microbatches
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.ema import EMAConfig, power_averages
from genai_jax.training.fit import Say, fit
from genai_jax.training.initialise import begin_from
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.run_config import OBSERVATIONAL, RunConfig
from genai_jax.training.run_directory import RunDirectory, open_run
from genai_jax.training.schedules import ScheduleConfig, fit_warmup, make_schedule
from genai_jax.training.script import run_script
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, init_state
from genai_jax.training.step import TrainStep, check_rows, make_train_step


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """A run of pre-training.

    Attributes:
        init: Folder of another run whose newest parameters this one begins with, and whose
            tokenizer it takes; or of a model of Hugging Face's (config.json, safetensors,
            tokenizer), whose shape is taken too; none draws parameters.
        also_measure: Sources that are measured beside the validation text, as `val/NAME/loss` and
            `val/NAME/bits_per_byte`: what a model forgets while it learns another text.
        length: T, tokens of a row.
        microbatches: Parts that a batch is computed in, one after the other, to save memory; 0 is
            one on accelerators, and on a CPU as many as make it fastest.
        model: The transformer.
        data: The text.
        optimizer: How a gradient becomes an update.
        schedule: The learning rate over the run; a warm-up of more than half of it is shortened.
        z_loss: Weight of the squared log-partition in the loss.
        ema_traces: Lengths of averages (standard deviation over steps so far) from which one of any
            length is made after the training: lm_sample.py --ema-sigma-rel. 0.05 0.1 is usual.
        snapshot_every: Steps between two snapshots of these averages, float32, all kept.
        sample_tokens: Tokens of the text that is sampled at each evaluation; 0 samples none.
        prompt: What the sampled text begins with.
        temperature: Of the sampled text; 0 always takes the likeliest token.
        compare_xz: Whether to end with what `xz -9` makes of the held-out text: seconds for
            megabytes, hours for gigabytes.
    """

    least_microbatches = 0

    workdir: str = "runs/lm_pretrain"
    init: str = ""
    also_measure: tuple[str, ...] = ()
    steps: int = 2000
    batch_size: int = 32
    length: int = 256
    microbatches: int = 0
    model: TransformerConfig = field(default_factory=TransformerConfig)
    data: TextConfig = field(default_factory=TextConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    z_loss: float = 0.0
    ema_decay: float = 0.0
    ema_traces: tuple[float, ...] = ()
    snapshot_every: int = 100
    evaluate_every: int = 500
    evaluation_rows: int = 32
    sample_tokens: int = 256
    prompt: str = ""
    temperature: float = 0.8
    compare_xz: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"`length` must be at least 1; got {self.length}.")
        if self.length > self.model.max_length:
            raise ValueError(
                f"`length` must not exceed `model.max_length`; got {self.length} and "
                f"{self.model.max_length}. Give --model.max-length {self.length}."
            )
        power_averages(self.ema_traces)


_MAY_DIFFER = (*OBSERVATIONAL, "data.cache_dir")

_LINES_SHOWN = 8  # of a sampled text, on the console

_SHAKESPEARE = PretrainConfig(
    workdir="runs/shakespeare",
    batch_size=12,
    length=64,
    model=replace(lm.NANOGPT_CPU, init_std=0.05),  # GPT-2's 0.02 is made for 768 wide
    data=TextConfig(tokenizer="characters", split="contiguous"),
    optimizer=OptimizerConfig(beta2=0.99),
    evaluation_rows=96,
)
_SHAKESPEARE_FAST = replace(
    _SHAKESPEARE,
    workdir="runs/shakespeare-fast",
    steps=250,
    model=replace(
        _SHAKESPEARE.model, norm="rms", positions="rope", qk_norm=True, activation="relu2"
    ),
    optimizer=OptimizerConfig(
        "muon", muon_momentum=0.75
    ),  # the shorter the run, the less to remember
    schedule=ScheduleConfig(1e-2, "linear", warmup_steps=5, final_fraction=0.0),
    log_every=20,
)
_QUICKSTART = PretrainConfig(
    workdir="runs/quickstart",
    steps=400,
    batch_size=16,
    model=TransformerConfig(num_layers=4, embed_dim=128, num_heads=4, mlp_dim=384, max_length=256),
    data=TextConfig(vocab_size=2048),
    optimizer=OptimizerConfig("muon", muon_momentum=0.85),
    schedule=ScheduleConfig(1e-2, "linear", warmup_steps=20, final_fraction=0.0),
    evaluate_every=100,
    save_every=100,
    log_every=20,
    prompt="def ",
)
_TASKS = replace(
    _QUICKSTART,
    workdir="runs/tasks",
    steps=600,
    length=128,
    model=lm.TASKS,
    data=TextConfig(sources=("tasks",), tokenizer="bytes", chat=True),
    evaluate_every=0,
    save_every=400,
    log_every=50,
    sample_tokens=100,
    prompt="",
    compare_xz=False,
)
_TOKENS_OF_GPT2 = TextConfig(sources=("synthetic",), tokenizer="bytes")
PRESETS: dict[str, tuple[str, PretrainConfig]] = {
    "quickstart": ("Python's own source code, minutes on a laptop", _QUICKSTART),
    "reference": (
        "the manual that every Python carries, minutes on a laptop",
        replace(
            _QUICKSTART,
            workdir="runs/reference",
            steps=200,
            model=replace(_QUICKSTART.model, dropout=0.1, attention_dropout=0.1),
            data=replace(_QUICKSTART.data, sources=("reference",)),
            evaluate_every=50,
            prompt="",
        ),
    ),
    "tasks": ("sentences of the embedded tasks, to be tuned by lm_sft.py", _TASKS),
    "domain": (
        "from Python's source, which a run of quickstart has learnt, to its manual; give --init",
        replace(
            _QUICKSTART,
            workdir="runs/domain",
            also_measure=("stdlib",),
            steps=150,
            data=replace(_QUICKSTART.data, sources=("reference",)),
            schedule=ScheduleConfig(2e-3, "linear", warmup_steps=10, final_fraction=0.0),
            evaluate_every=50,
            evaluate_first=True,
            prompt="",
        ),
    ),
    "shakespeare": ("nanoGPT's character model for CPUs; give --data.path", _SHAKESPEARE),
    "shakespeare-fast": ("as many parameters, less time; give --data.path", _SHAKESPEARE_FAST),
    "shakespeare-gpu": (
        "nanoGPT's character model for GPUs; give --data.path",
        replace(
            _SHAKESPEARE,
            workdir="runs/shakespeare-gpu",
            batch_size=64,
            length=256,
            steps=5000,
            evaluate_every=250,
            model=replace(
                lm.NANOGPT_CPU,
                num_layers=6,
                embed_dim=384,
                num_heads=6,
                max_length=256,
                dropout=0.2,
                attention_dropout=0.2,
            ),
        ),
    ),
    "tune": (
        "trains a model further, with gentle steps; give --init and --data.path",
        PretrainConfig(
            workdir="runs/tune",
            steps=200,
            batch_size=8,
            optimizer=OptimizerConfig(weight_decay=0.0),
            schedule=ScheduleConfig(peak=2e-5, warmup_steps=20),
            evaluate_every=50,
            evaluate_first=True,
            evaluation_rows=8,
            save_every=100,
            log_every=20,
            compare_xz=False,
        ),
    ),
    "gpt2-124m": (
        "GPT-2 on an accelerator; meaningless text unless --data is given",
        PretrainConfig(
            workdir="runs/gpt2-124m",
            steps=10_000,
            batch_size=32,
            length=1024,
            model=replace(lm.GPT2_124M, dtype="bfloat16", remat="dots"),
            data=_TOKENS_OF_GPT2,
            schedule=ScheduleConfig(peak=6e-4, warmup_steps=700),
            compare_xz=False,
        ),
    ),
    "llama3-8b": (
        "Llama 3 8B over many accelerators; meaningless text unless --data is given",
        PretrainConfig(
            workdir="runs/llama3-8b",
            steps=10_000,
            batch_size=256,
            length=8192,
            model=lm.LLAMA3_8B,
            data=_TOKENS_OF_GPT2,
            schedule=ScheduleConfig(peak=3e-4, warmup_steps=2000),
            fsdp=-1,
            compare_xz=False,
        ),
    ),
}


def run_pretraining(config: PretrainConfig, stop: StopRequest) -> int:
    """Train; returns the exit code."""
    beginning = beginning_of(config.init, "" if config.overwrite else config.workdir)
    shape = None if beginning is None else beginning.shape
    if shape is not None:
        config = replace(config, model=adopt(config.model, shape, config.length))
        print(f"shape and tokenizer: those of {config.init}, whatever other flags say", flush=True)
    tokenizer = None if beginning is None else beginning.tokenizer
    with open_run(
        config.workdir, config, overwrite=config.overwrite, observational=_MAY_DIFFER
    ) as run:
        data = load_text(config.data, length=config.length, seed=config.seed, tokenizer=tokenizer)
        print(data.summary, flush=True)
        run.require_identity({"data": data.content_digest, "tokenizer": data.tokenizer.digest})
        data.tokenizer.save(run.folder("tokenizer"))
        if shape is not None and not run.folder("origin").exists():
            PretrainedFolder(config.init).origin.save(run.folder("origin"))
        return pretrain(config, run, data, stop)


def make_training(
    config: PretrainConfig, shape: TransformerConfig, mesh: Mesh
) -> tuple[TrainState, TrainStep]:
    """Make the first state, and the step: model, objective, optimizer."""
    microbatches = config.microbatches
    if not microbatches:
        microbatches = fastest_microbatches(config.batch_size // mesh.size, config.length)
    schedule = make_schedule(fit_warmup(config.schedule, config.steps), config.steps)
    optimizer = make_optimizer(
        config.optimizer, schedule, decays=lm.decays, muon=lm.hidden_matrix, mesh=mesh
    )
    ema = EMAConfig(config.ema_decay) if config.ema_decay else None
    traces = power_averages(config.ema_traces)
    state = init_state(
        lambda: LanguageModel(shape, jax.random.key(config.seed)),
        optimizer,
        mesh,
        lm.SHARDING_RULES,
        ema=ema is not None,
        traces=traces.keys(),
    )
    train_step = make_train_step(
        functools.partial(next_token, z_loss=config.z_loss),
        optimizer,
        mesh,
        state,
        seed=config.seed,
        microbatches=microbatches,
        clip_norm=config.clip_norm or None,
        ema=ema,
        traces=traces,
    )
    return state, train_step


def pretrain(config: PretrainConfig, run: RunDirectory, data: TextData, stop: StopRequest) -> int:
    """Make state, step and data, have them run, and say what came of it."""
    shape = lm.fit_vocabulary(config.model, data.tokenizer.vocab_size)
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches or 1)
    state, train_step = make_training(config, shape, mesh)
    print(
        f"model: {sum(x.size for x in jax.tree.leaves(state.model)):,} parameters on "
        f"{describe_devices()}, mesh {dict(mesh.shape)}",
        flush=True,
    )
    evaluator = make_text_evaluator(
        next_token, mesh, data.validation, config.evaluation_rows, data.validation_bytes
    )

    evaluate_others = make_source_evaluators(
        config.also_measure,
        config.data,
        data.tokenizer,
        mesh,
        config.length,
        config.evaluation_rows,
    )

    def sample(state: TrainState, say: Say) -> dict[str, str]:
        text = sample_text(config, state.averaged, data.tokenizer, stop)
        say("\n".join("  | " + line for line in text.split("\n")[:_LINES_SHOWN]))
        return {".txt": text}

    state, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(data.train, config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=lambda state: {
            **evaluator(state.averaged, stop.check),
            **evaluate_others(state.averaged, stop.check),
        },
        sample=sample if config.sample_tokens else None,
        unit="tokens",
        units_per_row=config.length,
        flops_per_unit=lm.flops_per_token(shape, config.length),
        loss_unit="nats per token",
        init=begin_from(init_source(config.init)),
        snapshot_every=config.snapshot_every,
    )
    if exit_code == 0:
        report = run.folder("samples") / "report.txt"
        describe = functools.partial(
            describe_pretraining,
            run,
            data,
            state.averaged,
            SamplingConfig(config.temperature),
            compare_xz=config.compare_xz,
            max_tokens=config.length,
            seed=config.seed,
        )
        print(kept_text(report, describe))
    return exit_code


def sample_text(
    config: PretrainConfig, model: LanguageModel, tokenizer: Tokenizer, stop: StopRequest
) -> str:
    """Write a text: the same noise every time, so that only the parameters differ."""
    written = stream_text(
        model,
        tokenizer,
        config.prompt,
        SamplingConfig(config.temperature),
        max_tokens=config.sample_tokens,
        seed=config.seed,
        check=stop.check,
    )
    return config.prompt + "".join(written)


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    return run_script(config, run_pretraining)


if __name__ == "__main__":
    sys.exit(main())
