"""Trains a diffusion model on images, and shows what it draws."""

import dataclasses
import subprocess
import sys
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import jax
import tyro
from jax.sharding import Mesh

from genai_jax.command_line import parse_command_line
from genai_jax.data.image_rows import check_batch_fits
from genai_jax.data.images import ImageConfig, ImageData, load_images
from genai_jax.data.loader import Loader
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.sampling import SamplerConfig
from genai_jax.diffusion.weightings import LevelConfig
from genai_jax.evaluation.drawing import Drawer, picture_of, some_conditions
from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.evaluation.image_likelihood import BoundConfig, make_bound, split_bits
from genai_jax.evaluation.image_runs import fit_network, load_classifier, make_network
from genai_jax.evaluation.image_summary import describe_bits, describe_samples
from genai_jax.evaluation.text_report import kept_text
from genai_jax.evaluation.yardstick import make_yardstick
from genai_jax.models import dit, unet
from genai_jax.models.classifier import Classifier
from genai_jax.models.dit import DiT, DiTConfig
from genai_jax.models.unet import UNet
from genai_jax.models.unet_config import UNetConfig
from genai_jax.objectives.denoising import Condition, make_denoising
from genai_jax.parallel.cpu_devices import describe_devices
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.ema import EMAConfig, power_averages
from genai_jax.training.fit import Say, fit
from genai_jax.training.initialise import begin_from, from_run
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.run_config import OBSERVATIONAL, RunConfig
from genai_jax.training.run_directory import RunDirectory, RunError, open_run
from genai_jax.training.schedules import ScheduleConfig, fit_warmup, make_schedule
from genai_jax.training.script import run_script
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, init_state
from genai_jax.training.step import TrainStep, check_rows, make_train_step


@dataclasses.dataclass(frozen=True)
class ImageDiffusionConfig(RunConfig):
    """A run that trains a diffusion model.

    Attributes:
        init: Folder of another run whose newest parameters this one begins with; none draws them.
        network: The network; its image size, channels, classes and words are the data's.
        diffusion: The process, and what the network says of it.
        levels: Which noise levels are trained on, and how much each counts.
        condition: What the network is told of an image: nothing, its label, or its caption.
        condition_dropout: Probability that it is told nothing, for guidance.
        flip: Whether half of the images are mirrored, left to right.
        vlb_weight: Weight of the variational term that trains a learned variance.
        data: The images.
        optimizer: How a gradient becomes an update.
        schedule: The learning rate over the run; a warm-up of more than half of it is shortened.
        ema_warmup: Whether the decay of the average starts at 0.1 and rises.
        ema_traces: Lengths of averages (standard deviation over steps so far) from which one of any
            length is made after the training: image_sample.py --ema-sigma-rel. 0.05 0.1 is usual.
        snapshot_every: Steps between two snapshots of these averages, float32, all kept.
        sampler: How the pictures of a run are drawn.
        sample_images: Images that are drawn at each evaluation; 0 draws none.
        bound: How the bits per dimension of held-out images are bounded, at the end.
        judge: Preset of image_classifier.py whose classifier judges samples at the end; none
            judges none.
        classifier: Folder of the classifier's run; it is trained there where it is missing.
    """

    init: str = ""
    network: tyro.conf.AvoidSubcommands[UNetConfig | DiTConfig] = field(default_factory=UNetConfig)
    diffusion: Diffusion = field(default_factory=Diffusion)
    levels: LevelConfig = field(default_factory=LevelConfig)
    condition: Condition = "label"
    condition_dropout: float = 0.1
    flip: bool = False
    vlb_weight: float = 1e-3
    data: ImageConfig = field(default_factory=ImageConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema_warmup: bool = True
    ema_traces: tuple[float, ...] = ()
    snapshot_every: int = 100
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    sample_images: int = 80
    bound: BoundConfig = field(default_factory=BoundConfig)
    judge: str = ""
    classifier: str = "runs/digits-classifier"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(
                f"`condition_dropout` must be in [0, 1]; got {self.condition_dropout}. Try 0.1."
            )
        power_averages(self.ema_traces)


_DIGITS = ImageDiffusionConfig(
    workdir="runs/digits",
    steps=1000,
    batch_size=128,
    network=UNetConfig(
        width=32, multipliers=(1, 2), groups=8, dropout=0.1, fourier_frequencies=(2, 3, 4)
    ),
    diffusion=Diffusion(Process("cosine", num_steps=1000), "v"),
    optimizer=OptimizerConfig("muon", beta2=0.99, muon_momentum=0.9, weight_decay=0.0),
    schedule=ScheduleConfig(1e-2, "linear", warmup_steps=50, final_fraction=0.0),
    ema_decay=0.99,
    evaluate_every=250,
    evaluation_rows=60,
    sampler=SamplerConfig(solver="ddim", num_steps=50, guidance_scale=1.25),
    judge="digits",
    save_every=250,
)

# Ho et al., arXiv:2006.11239. It differs in this: the gradient is clipped as a whole (their code
# clips each replica's, before the mean), and times are strata of the batch, not independent.
_CIFAR10_DDPM = ImageDiffusionConfig(
    workdir="runs/cifar10-ddpm",
    steps=800_000,  # appendix B
    batch_size=128,  # appendix B
    network=unet.CIFAR10_DDPM,  # 35.7 M parameters, dropout 0.1: appendix B
    diffusion=Diffusion(
        Process("linear", num_steps=1000, beta_first=1e-4, beta_last=0.02),  # section 4
        "eps",  # eq. 12
    ),
    levels=LevelConfig(weighting="simple", times="uniform"),  # eq. 14
    condition="none",
    flip=True,  # appendix B
    data=ImageConfig(source="tfds:cifar10"),
    optimizer=OptimizerConfig(  # Adam, with its own constants: appendix B
        "adamw", beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0
    ),
    schedule=ScheduleConfig(2e-4, "constant", warmup_steps=5000),  # appendix B; warm-up: their code
    clip_norm=1.0,  # their code
    ema_decay=0.9999,  # appendix B
    ema_warmup=False,
    evaluate_every=10_000,
    sampler=SamplerConfig(solver="ancestral", num_steps=1000, variance="large"),  # section 3.2
    save_every=10_000,
    log_every=100,
)


# Karras et al., arXiv:2206.00364. It differs in this: the U-Net is DDPM's, as wide and as deep;
# images are mirrored only, and the average's half-life does not grow at the beginning.
_CIFAR10_EDM = replace(
    _CIFAR10_DDPM,
    workdir="runs/cifar10-edm",
    steps=390_625,  # 200 million images: table 7
    batch_size=512,  # table 7
    network=replace(
        unet.CIFAR10_DDPM, multipliers=(2, 2, 2), num_res_blocks=4, dropout=0.13
    ),  # table 7, and appendix F.2
    diffusion=Diffusion(Process("edm", sigma_max=80.0), "edm", sigma_data=0.5),  # table 1
    levels=LevelConfig("edm", times="lognormal", mean=-1.2, std=1.2),  # table 1
    condition="label",
    schedule=ScheduleConfig(1e-3, "constant", warmup_steps=19_531),  # 10 million images: table 7
    clip_norm=0.0,
    ema_decay=0.5 ** (512 / 500_000),  # table 7
    sampler=SamplerConfig(
        solver="heun", num_steps=18, grid="karras", rho=7.0, sigma_min=0.002, threshold="none"
    ),  # table 1
)

_SHAPES = ImageDiffusionConfig(
    workdir="runs/shapes",
    steps=6000,
    batch_size=64,
    network=dit.SHAPES,
    diffusion=Diffusion(Process("flow"), "flow"),
    levels=LevelConfig(times="logit_normal", mean=0.0, std=1.0),
    condition="tokens",
    data=ImageConfig(source="shapes"),
    optimizer=OptimizerConfig("muon", beta2=0.99, muon_momentum=0.9, weight_decay=0.01),
    schedule=ScheduleConfig(1e-2, "linear", warmup_steps=200, final_fraction=0.0),
    ema_decay=0.998,
    evaluate_every=1000,
    evaluation_rows=64,
    sampler=SamplerConfig(solver="heun", num_steps=25, guidance_scale=2.0),
    bound=BoundConfig(images=128),
    sample_images=32,
    save_every=500,
    log_every=100,
)

_IMAGENET64_DIT = ImageDiffusionConfig(
    workdir="runs/imagenet64-dit",
    steps=400_000,
    batch_size=256,
    network=dit.IMAGENET64,
    diffusion=Diffusion(Process("flow"), "flow"),
    levels=LevelConfig(times="logit_normal", mean=0.0, std=1.0),
    flip=True,
    data=ImageConfig(source="tfds:imagenet_resized/64x64"),
    optimizer=OptimizerConfig(beta2=0.999, weight_decay=0.0),
    schedule=ScheduleConfig(1e-4, "constant", warmup_steps=1000),
    ema_decay=0.9999,
    ema_traces=(0.05, 0.10),
    snapshot_every=10_000,
    evaluate_every=10_000,
    evaluation_rows=256,
    sampler=SamplerConfig(solver="heun", num_steps=50, guidance_scale=1.5),
    save_every=5000,
    log_every=100,
)
PRESETS: dict[str, tuple[str, ImageDiffusionConfig]] = {
    "digits": ("the 8x8 digits by class, minutes on a laptop", _DIGITS),
    "digits-flow": (
        "the same by rectified flow",
        replace(
            _DIGITS,
            workdir="runs/digits-flow",
            diffusion=Diffusion(Process("flow"), "flow"),
            levels=LevelConfig(times="logit_normal", mean=0.0, std=1.0),
            sampler=SamplerConfig(solver="heun", num_steps=25, guidance_scale=1.25),
        ),
    ),
    "shapes": ("coloured shapes by caption, an hour on a laptop", _SHAPES),
    "cifar10-ddpm": ("CIFAR-10 as in the DDPM paper, on accelerators", _CIFAR10_DDPM),
    "cifar10-edm": ("CIFAR-10 by class as in the EDM paper, on accelerators", _CIFAR10_EDM),
    "imagenet64-dit": ("ImageNet at 64x64 by a DiT, on accelerators", _IMAGENET64_DIT),
}

_MAY_DIFFER = (
    *OBSERVATIONAL,
    *("classifier", "data.cache_dir", "data.cache_megabytes", "data.data_dir"),
)


def room_of(network: UNetConfig | DiTConfig) -> Any:
    """Find the file that knows a network's axes, groups and cost."""
    return unet if isinstance(network, UNetConfig) else dit


def make_training(
    config: ImageDiffusionConfig, num_levels: int, mesh: Mesh
) -> tuple[TrainState, TrainStep]:
    """Make the first state, and the step: model, objective, optimizer."""
    room = room_of(config.network)
    schedule = make_schedule(fit_warmup(config.schedule, config.steps), config.steps)
    optimizer = make_optimizer(
        config.optimizer, schedule, decays=room.decays, muon=room.hidden_matrix, mesh=mesh
    )
    ema = EMAConfig(config.ema_decay, warmup=config.ema_warmup) if config.ema_decay else None
    traces = power_averages(config.ema_traces)
    state = init_state(
        lambda: make_network(config.network, jax.random.key(config.seed)),
        optimizer,
        mesh,
        room.SHARDING_RULES,
        ema=ema is not None,
        traces=traces.keys(),
    )
    objective = make_denoising(
        config.diffusion,
        config.levels,
        condition=config.condition,
        condition_dropout=config.condition_dropout,
        flip=config.flip,
        vlb_weight=config.vlb_weight,
        num_levels=num_levels,
    )
    train_step = make_train_step(
        objective,
        optimizer,
        mesh,
        state,
        seed=config.seed,
        microbatches=config.microbatches,
        unroll=True,  # the gradient of a convolution is slow in a loop
        clip_norm=config.clip_norm or None,
        ema=ema,
        traces=traces,
    )
    return state, train_step


def run_diffusion(config: ImageDiffusionConfig, stop: StopRequest) -> int:
    """Train; returns the exit code."""
    data = load_images(config.data, seed=config.seed)
    print(data.summary, flush=True)
    check_batch_fits(data.train, config.batch_size)
    config = replace(config, network=fit_network(config.network, data, config.condition))
    config.sampler.check(config.diffusion, conditional=config.condition != "none")
    with open_run(
        config.workdir, config, overwrite=config.overwrite, observational=_MAY_DIFFER
    ) as run:
        run.require_identity({"data": data.content_digest})
        return train_images(config, run, data, stop)


def train_images(
    config: ImageDiffusionConfig, run: RunDirectory, data: ImageData, stop: StopRequest
) -> int:
    """Hand state, step and data to the loop, and say what came of it."""
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches)
    state, train_step = make_training(config, data.levels, mesh)
    print(
        f"model: {sum(x.size for x in jax.tree.leaves(state.model)):,} parameters on "
        f"{describe_devices()}, mesh {dict(mesh.shape)}",
        flush=True,
    )
    evaluator = make_evaluator(
        make_denoising(config.diffusion, config.levels, condition=config.condition, training=False),
        mesh,
        data.validation,
        config.evaluation_rows,
        seed=config.seed,
    )
    drawer = Drawer(config.diffusion, data.shape, mesh)
    told = some_conditions(data, config.condition, config.sample_images)

    def sample(state: TrainState, say: Say) -> dict[str, bytes]:
        model, count = state.averaged, config.sample_images
        images = drawer(model, count, told, config.sampler, seed=config.seed, check=stop.check)
        return {".png": picture_of(images, told, data.num_classes)}

    state, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(data.train, config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=lambda state: evaluator(state.averaged, stop.check),
        sample=sample if config.sample_images else None,
        unit="images",
        flops_per_unit=room_of(config.network).flops_per_image(config.network),
        loss_unit="weighted squared error",
        init=begin_from(from_run(config.init)),
        snapshot_every=config.snapshot_every,
    )
    if exit_code == 0:
        report = run.folder("samples") / "report.txt"
        model = state.averaged
        print(kept_text(report, lambda: final_report(config, data, model, drawer, mesh, stop)))
    return exit_code


def final_report(
    config: ImageDiffusionConfig,
    data: ImageData,
    model: UNet | DiT,
    drawer: Drawer,
    mesh: Mesh,
    stop: StopRequest,
) -> str:
    """Say what the run has come to: likelihood, and samples beside real images."""
    told = config.condition
    how: dict[str, Any] = {"mesh": mesh, "seed": config.seed, "check": stop.check}
    bound = make_bound(config.diffusion, data.levels, config.bound)
    bits = split_bits(bound, model, data, "test", told, images=config.bound.images, **how)
    lines = [describe_bits(bits, "test")]
    if config.judge:
        yardstick = make_yardstick(data, trained_judge(config, stop))
        labels = some_conditions(data, told, yardstick.count)
        how = {"labels": labels, "seed": config.seed, "check": stop.check}
        lines.append(describe_samples(yardstick, drawer, model, config.sampler, **how))
    folder = Path(config.workdir)
    lines.append(f"loss curve:       {folder / 'plots' / 'loss.png'}")
    if config.sample_images:
        lines.append(f"samples:          {folder / 'samples' / f'{config.steps:08}.png'}")
    lines.append(f"more samples:     python experiments/image_sample.py --run {folder}")
    return "\n".join(lines)


def trained_judge(config: ImageDiffusionConfig, stop: StopRequest) -> Classifier:
    """Load the classifier that samples are judged by; train it where that was not done before."""
    script = Path(__file__).with_name("image_classifier.py")
    command = [sys.executable, str(script), config.judge, "--workdir", config.classifier]
    print(f"the judge: python {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command).returncode
    stop.check()  # Ctrl-C is told to both
    if code:
        raise RunError(f"the judge must be trained, which failed (see above; exit code {code}).")
    return load_classifier(config.classifier)[0]


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    return run_script(config, run_diffusion)


if __name__ == "__main__":
    sys.exit(main())
