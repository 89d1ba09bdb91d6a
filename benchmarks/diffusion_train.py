"""Times the train step of a U-Net against PyTorch's, alternately, on this machine's CPU.

The peer is the same U-Net of diffusers: the same number of parameters, the same step (noise, mean
squared error, clipping, AdamW, a moving average of the parameters), float32, all cores.
"""

import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

if TYPE_CHECKING:
    from benchmarks.side_by_side import Call
    from genai_jax.models.unet import UNetConfig

Setting = Literal["digits", "cifar"]
BATCH = {"digits": 128, "cifar": 8}
_CPU_DEVICES = {"digits": None, "cifar": 1}
_CALLS_A_TURN = {"digits": 5, "cifar": 1}
_LEARNING_RATE, _CLIP, _EMA = 2e-4, 1.0, 0.9999


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        setting: digits is 8 × 8, 1,023,169 parameters, 128 images a step; cifar is the U-Net of
            the DDPM paper, 35,746,307 parameters, 8 images.
        turns: How often each contender is timed: 5 steps of digits, 1 of cifar.
        dropout: Dropout of both.
        microbatches: Parts of our batch, unrolled.
        cpu_devices: Devices that ours makes of the CPU; 0 is one a core for digits and one for
            cifar, where updates of many parameters are better shared by threads.
        forms: Which of PyTorch's forms take part; the peer is the fastest of them.
    """

    setting: Setting = "digits"
    turns: int = 10
    dropout: float = 0.0
    microbatches: int = 1
    cpu_devices: int = 0
    forms: tuple[Literal["eager", "compiled", "eager_last", "compiled_last"], ...] = (
        "eager",
        "compiled",
        "eager_last",
        "compiled_last",
    )


def shape_of(setting: Setting, dropout: float = 0.0) -> "UNetConfig":
    """Give the shape of a setting's U-Net."""
    from genai_jax.models.unet import CIFAR10_DDPM, UNetConfig

    if setting == "cifar":
        return dataclasses.replace(CIFAR10_DDPM, dropout=dropout)
    return UNetConfig(image_size=8, channels=1, dropout=dropout)


def make_images(rows: int, shape: "UNetConfig") -> np.ndarray:
    """Draw images, NHWC: the time does not depend on them."""
    size = (rows, shape.image_size, shape.image_size, shape.channels)
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


def make_jax_step(config: BenchmarkConfig) -> "tuple[Call, str]":
    """Make our step, as `experiments/image_diffusion.py` makes it."""
    from genai_jax.parallel.cpu_devices import split_cpu

    split_cpu(config.cpu_devices or _CPU_DEVICES[config.setting])
    import jax

    from genai_jax.diffusion.denoiser import Diffusion
    from genai_jax.diffusion.process import Process
    from genai_jax.diffusion.weightings import LevelConfig
    from genai_jax.models import unet
    from genai_jax.objectives.denoising import make_denoising
    from genai_jax.parallel.mesh import make_mesh
    from genai_jax.parallel.sharding import batch_sharding
    from genai_jax.training.ema import EMAConfig
    from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
    from genai_jax.training.schedules import ScheduleConfig, make_schedule
    from genai_jax.training.state import init_state
    from genai_jax.training.step import make_train_step

    shape = shape_of(config.setting, config.dropout)
    mesh = make_mesh()
    optimizer = make_optimizer(
        OptimizerConfig(beta2=0.999, weight_decay=0.0),
        make_schedule(ScheduleConfig(peak=_LEARNING_RATE), 1000),
        decays=unet.decays,
        muon=unet.hidden_matrix,
        mesh=mesh,
    )
    state = init_state(
        lambda: unet.UNet(shape, jax.random.key(0)), optimizer, mesh, unet.SHARDING_RULES, ema=True
    )

    # DDPM's: noise is predicted, times are uniform, every one counts alike.
    diffusion = Diffusion(Process("linear", num_steps=1000), "eps")
    objective = make_denoising(diffusion, LevelConfig(weighting="simple", times="uniform"))
    step = make_train_step(
        objective,
        optimizer,
        mesh,
        state,
        seed=0,
        microbatches=config.microbatches,
        unroll=True,
        clip_norm=_CLIP,
        ema=EMAConfig(_EMA),
    )
    batch = {
        "image": jax.device_put(make_images(BATCH[config.setting], shape), batch_sharding(mesh))
    }

    leaves = jax.tree.leaves(state)  # as the loop keeps them

    def call() -> float:
        nonlocal leaves
        leaves, metrics = step.on_leaves(leaves, batch)
        total, weight = metrics["loss"]
        return float(total) / float(weight)

    return call, f"{unet.count_parameters(shape):,} parameters"


def make_torch_unet(shape: "UNetConfig") -> Any:
    """Make diffusers' U-Net of a shape of ours, with one head."""
    import diffusers

    resolutions = [shape.image_size >> i for i in range(len(shape.multipliers))]
    attends = [r in shape.attention_resolutions for r in resolutions]
    return diffusers.UNet2DModel(
        sample_size=shape.image_size,
        in_channels=shape.channels,
        out_channels=shape.channels,
        block_out_channels=tuple(shape.width * m for m in shape.multipliers),
        layers_per_block=shape.num_res_blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None,  # one head
        norm_num_groups=shape.groups,
        norm_eps=1e-6,
        dropout=shape.dropout,
        downsample_padding=0,
        freq_shift=1,
        flip_sin_to_cos=False,
    )


def make_torch_step(config: BenchmarkConfig, form: str) -> "tuple[Call, str]":
    """Make the same step in PyTorch: fused AdamW, a moving average by one operation for all."""
    import torch

    from genai_jax.parallel.cpu_devices import usable_cores

    torch.set_num_threads(usable_cores())
    shape = shape_of(config.setting, config.dropout)
    model = make_torch_unet(shape)
    layout = torch.channels_last if form.endswith("_last") else torch.contiguous_format
    model = model.to(memory_format=layout)
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if form.startswith("compiled") else model
    images = torch.from_numpy(make_images(BATCH[config.setting], shape).transpose(0, 3, 1, 2))
    images = images.contiguous(memory_format=layout)
    alpha_bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def call() -> float:
        eps = torch.randn_like(images)
        step = torch.randint(1000, (len(images),))
        signal = alpha_bars[step][:, None, None, None]
        said = forward(signal.sqrt() * images + (1 - signal).sqrt() * eps, step).sample
        loss = torch.nn.functional.mse_loss(said, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - _EMA)
        return loss.item()

    return call, f"{sum(p.numel() for p in parameters):,} parameters"


def main() -> int:
    """Time the contenders in turn and print the ratios."""
    from benchmarks.side_by_side import print_table, time_in_turn, torch_versions

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    makers = {"genai_jax": functools.partial(make_jax_step, config)}
    versions = torch_versions("diffusers")
    if versions is None:
        print("PyTorch and diffusers are not installed (pip install -e '.[bench]'): ours alone")
    else:
        print(versions)
        for form in config.forms:
            name = f"PyTorch {form.replace('_last', ', channels last')}"
            makers[name] = functools.partial(make_torch_step, config, form)
    timings = time_in_turn(makers, turns=config.turns, calls=_CALLS_A_TURN[config.setting])
    print(f"\n{config.setting}: {BATCH[config.setting]} images a step")
    print_table(timings, "genai_jax", "images", BATCH[config.setting])
    return 0


if __name__ == "__main__":
    # Contenders import `benchmarks` from the root of the repository, wherever this was started.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
