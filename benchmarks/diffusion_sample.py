"""Times sampling by DDIM in 50 steps against diffusers, alternately, on this machine's CPU.

The same U-Nets as in `diffusion_train.py`, untrained: the time does not depend on what they say.
"""

import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from benchmarks.side_by_side import Call

ROWS = {"digits": 64, "cifar": 4}
_STEPS = 50


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        setting: digits draws 64 images of 8 × 8, cifar 4 of 32 × 32 by the DDPM paper's U-Net.
        turns: How often each contender draws its images.
        forms: Which of PyTorch's forms take part; the peer is the fastest of them.
    """

    setting: Literal["digits", "cifar"] = "digits"
    turns: int = 6
    forms: tuple[Literal["eager", "compiled", "eager_last", "compiled_last"], ...] = (
        "eager",
        "compiled",
    )


def make_jax_sampler(config: BenchmarkConfig) -> "tuple[Call, str]":
    """Make our sampler; it starts from other noise at each call."""
    from genai_jax.parallel.cpu_devices import split_cpu

    split_cpu()
    import jax

    from benchmarks.diffusion_train import shape_of
    from genai_jax.diffusion.denoiser import Diffusion
    from genai_jax.diffusion.process import Process
    from genai_jax.diffusion.sampling import SamplerConfig, make_sampler, settings_of
    from genai_jax.models.unet import UNet, count_parameters
    from genai_jax.parallel.mesh import make_mesh
    from genai_jax.parallel.sharding import batch_sharding, replicated

    shape, mesh = shape_of(config.setting), make_mesh()
    model = jax.jit(lambda: UNet(shape, jax.random.key(0)), out_shardings=replicated(mesh))()
    size = (shape.image_size, shape.image_size, shape.channels)
    sampler = make_sampler(Diffusion(Process("linear", num_steps=1000), "eps"), size, "ddim", mesh)
    settings = settings_of(SamplerConfig("ddim", _STEPS, threshold="static"))
    key = jax.random.key(0)

    def call() -> float:
        nonlocal key
        key, now = jax.random.split(key)
        keys = jax.device_put(jax.random.split(now, ROWS[config.setting]), batch_sharding(mesh))
        samples = sampler(model, keys, None, settings)
        return float(jax.tree.leaves(samples)[0].mean())

    return call, f"{count_parameters(shape):,} parameters"


def make_torch_sampler(config: BenchmarkConfig, form: str) -> "tuple[Call, str]":
    """Make diffusers' sampler: its scheduler, without its progress bar."""
    import diffusers
    import torch

    from benchmarks.diffusion_train import make_torch_unet, shape_of
    from genai_jax.parallel.cpu_devices import usable_cores

    torch.set_num_threads(usable_cores())
    shape = shape_of(config.setting)
    model = make_torch_unet(shape).eval()
    layout = torch.channels_last if form.endswith("_last") else torch.contiguous_format
    model = model.to(memory_format=layout)
    forward = torch.compile(model) if form.startswith("compiled") else model
    scheduler: Any = diffusers.DDIMScheduler(num_train_timesteps=1000, clip_sample=True)
    scheduler.set_timesteps(_STEPS)
    size = (ROWS[config.setting], shape.channels, shape.image_size, shape.image_size)

    @torch.inference_mode()
    def call() -> float:
        x = torch.randn(size).contiguous(memory_format=layout)
        for t in scheduler.timesteps:
            x = scheduler.step(forward(x, t).sample, t, x).prev_sample
        return x.mean().item()

    return call, f"{sum(p.numel() for p in model.parameters()):,} parameters"


def main() -> int:
    """Time the contenders in turn and print the ratios."""
    from benchmarks.side_by_side import print_table, time_in_turn, torch_versions

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    makers = {"genai_jax": functools.partial(make_jax_sampler, config)}
    versions = torch_versions("diffusers")
    if versions is None:
        print("PyTorch and diffusers are not installed (pip install -e '.[bench]'): ours alone")
    else:
        print(versions)
        for form in config.forms:
            name = f"PyTorch {form.replace('_last', ', channels last')}"
            makers[name] = functools.partial(make_torch_sampler, config, form)
    timings = time_in_turn(makers, turns=config.turns, calls=1)
    print(f"\n{config.setting}: {ROWS[config.setting]} images, {_STEPS} steps of DDIM")
    print_table(timings, "genai_jax", "images", ROWS[config.setting])
    return 0


if __name__ == "__main__":
    # Contenders import from the root of the repository, wherever this was started.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
