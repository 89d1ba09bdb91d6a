# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Denoise an image
#
# Turn images into noise, train a network to turn noise into images, look at what it predicts at
# every noise level, sample with five solvers at equal cost, guide, and ask what an image costs in
# bits. Runs on a TPU, a GPU or a CPU; on two CPU cores it takes some minutes.
#
# Every step below is a call into the library. The path is the one of
# `experiments/image_diffusion.py`: data → network → objective → step → sampler.

# %%
# Where this notebook was opened without the repository (as in Colab): its Git address.
REPOSITORY = ""  # @param {type:"string"}

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("genai_jax") is None:
    here = [Path.cwd(), *Path.cwd().parents]
    clone = next((folder for folder in here if (folder / "genai_jax").is_dir()), None)
    if clone is None:
        if not REPOSITORY:
            raise SystemExit("Write the repository's address into REPOSITORY and run this again.")
        clone = Path("genai_jax_repository")
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(clone)], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", str(clone)]
    subprocess.run(install, check=True)
    sys.path.insert(0, str(clone.resolve()))  # seen by this process, which is running already

# %%
from genai_jax.parallel.cpu_devices import describe_devices, split_cpu

split_cpu()  # one device a core, if there is no accelerator; must come before JAX starts

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

print(describe_devices())

# %% [markdown]
# ## Images
# The 8×8 digits that scikit-learn carries: 17 shades of grey, which become numbers in [-1, 1].

# %%
from genai_jax.data.image_rows import levels_to_float
from genai_jax.data.images import ImageConfig, load_images
from genai_jax.evaluation.pictures import grid_png

data = load_images(ImageConfig(source="digits"), seed=0)
print(data.summary)
test = levels_to_float(data.levels_of("test"), data.levels)
test_labels = data.field_of("test", "label")


def show(images, columns, title=""):
    picture = plt.imread(io.BytesIO(grid_png(np.asarray(images), columns=columns)))
    height, width = picture.shape[:2]
    plt.figure(figsize=(9, 9 * height / width))
    plt.imshow(picture, cmap="gray", vmin=0, vmax=1)
    plt.title(title)
    plt.axis("off")
    plt.show()


show(test[:40], 20, "held-out digits")

# %% [markdown]
# ## Into noise
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$. A schedule is one function, the log signal-to-noise
# ratio $\lambda(t) = \log \alpha_t^2 / \sigma_t^2$; from it and a geometry ($\alpha^2 + \sigma^2 =
# 1$ here) everything else follows. On the left t = 0, the image; on the right t = 1, noise.

# %%
from genai_jax.diffusion.process import Process

process = Process("cosine", num_steps=1000)
t = jnp.linspace(0.0, 1.0, 11)
alpha, sigma = process.alpha_sigma(t)
eps = jax.random.normal(jax.random.key(0), (4, 1, 8, 8, 1))
noisy = alpha[:, None, None, None] * test[:4, None] + sigma[:, None, None, None] * eps
show(noisy.reshape(-1, 8, 8, 1), 11, "t = 0, 0.1, ..., 1")

# %%
times = jnp.linspace(0.01, 1.0, 200)
for name in ("linear", "cosine", "sigmoid", "flow"):
    plt.plot(times, Process(name, log_snr_min=-12.0).log_snr(times), label=name)
plt.xlabel("t")
plt.ylabel("log-SNR λ(t), nats")
plt.legend()
plt.show()

# %% [markdown]
# ## A network, and what it is trained to say
# A small U-Net sees $x_t$, the noise level and the class, and predicts $v = \alpha\epsilon - \sigma
# x_0$: from $v$ and $x_t$ both the image and the noise follow. The loss is the mean square of its
# error, over times that are spread evenly over the batch.

# %%
from genai_jax.data.loader import Loader
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.weightings import LevelConfig
from genai_jax.models import unet
from genai_jax.models.unet import UNet
from genai_jax.models.unet_config import UNetConfig
from genai_jax.objectives.denoising import make_denoising
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.ema import EMAConfig
from genai_jax.training.loop import host_means
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.schedules import ScheduleConfig, fit_warmup, make_schedule
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step

STEPS = int(os.environ.get("STEPS", 800))
ROWS = 128

mesh = make_mesh()
diffusion = Diffusion(process, "v")
network = UNetConfig(
    image_size=8,
    channels=1,
    width=16,
    num_res_blocks=1,
    attention_resolutions=(4,),
    groups=8,
    num_classes=data.num_classes,
)
schedule = make_schedule(
    fit_warmup(ScheduleConfig(1e-2, "linear", warmup_steps=50, final_fraction=0.0), STEPS), STEPS
)
optimizer = make_optimizer(
    OptimizerConfig("muon", beta2=0.99, muon_momentum=0.9, weight_decay=0.0),
    schedule,
    decays=unet.decays,
    muon=unet.hidden_matrix,
    mesh=mesh,
)
state = init_state(
    lambda: UNet(network, jax.random.key(0)), optimizer, mesh, unet.SHARDING_RULES, ema=True
)
print(f"{unet.count_parameters(network):,} parameters")
train_step = make_train_step(
    make_denoising(diffusion, LevelConfig(), condition="label"),
    optimizer,
    mesh,
    state,
    seed=0,
    ema=EMAConfig(0.99),
)

# %%
losses = []
with Loader(data.train, ROWS, sharding=batch_sharding(mesh)) as loader:
    for step in range(STEPS):
        state, metrics = train_step(state, loader.batch(step))
        losses.append(host_means(metrics)["loss"])
model = state.averaged
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()
print(f"loss after {STEPS} steps: {np.mean(losses[-20:]):.3f}")

# %% [markdown]
# ## What it predicts at each noise level
# Three rows of a held-out digit: noisy, the network's estimate of the image, and the image. Where
# there is little noise there is little to do; where there is only noise it says the class's mean.

# %%
denoise = jax.jit(lambda model, x_t, t, labels: diffusion.make_denoiser(model, labels)(x_t, t).x_0)
levels = jnp.arange(1, 11) / 10
alpha, sigma = process.alpha_sigma(levels)
image, label = np.repeat(test[:1], 10, 0), np.repeat(test_labels[:1], 10)
eps = jax.random.normal(jax.random.key(1), image.shape)
x_t = alpha[:, None, None, None] * image + sigma[:, None, None, None] * eps
estimate = denoise(model, x_t, levels, label)
show(np.concatenate([x_t, estimate, image]), 10, "t = 0.1 ... 1: noisy, estimated, true")

# %% [markdown]
# ## Five solvers at equal cost
# All start from the same noise and ask the network 20 times (Heun asks twice a step). Steps, grid
# and guidance are arguments of the compiled sampler: changing them compiles nothing.

# %%
from genai_jax.diffusion.sampling import SOLVERS, SamplerConfig
from genai_jax.evaluation.drawing import Drawer

drawer = Drawer(diffusion, data.shape, mesh, batch_size=40)
labels = np.arange(20, dtype=np.int32) % 10
rows = []
for solver in SOLVERS:
    config = SamplerConfig(solver=solver, num_steps=10 if solver == "heun" else 20)
    rows.append(drawer(model, 20, labels, config))
show(np.concatenate(rows), 20, ", ".join(SOLVERS))

# %% [markdown]
# On the way: what the network believes the image to be, from the first step to the last.

# %%
strips = drawer(model, 4, labels[:4], SamplerConfig(num_steps=50), frames=12)
show(strips.reshape(-1, *data.shape), 12, "estimates of four images, from noise to image")

# %% [markdown]
# ## Guidance
# $x_u + w (x_c - x_u)$: away from what any digit would be, towards its class. w = 1 is the model
# itself; a large w gives clear digits that resemble each other.

# %%
rows = [drawer(model, 20, labels, SamplerConfig(guidance_scale=w)) for w in (0.0, 1.0, 2.0, 6.0)]
show(np.concatenate(rows), 20, "w = 0 (no class), 1, 2, 6")

# %% [markdown]
# ## Parts drawn anew
# The upper half of held-out digits is kept, the lower half sampled to fit.

# %%
from genai_jax.diffusion.editing import make_inpainter
from genai_jax.diffusion.sampling import settings_of
from genai_jax.training.step import row_keys

inpainter = make_inpainter(diffusion)
known = np.ones((20, 8, 8, 1), np.float32)
known[:, 4:] = 0
halves = inpainter(
    model,
    row_keys(0, 0, 20, "inpaint"),
    test_labels[:20],
    settings_of(SamplerConfig(num_steps=50)),
    image=test[:20],
    known=known,
    resamples=2,
).x
show(np.concatenate([test[:20], np.where(known == 1, test[:20], 0), halves]), 20, "inpainting")

# %% [markdown]
# ## What an image costs
# The variational bound, in bits per dimension: naming one of 17 shades at random costs
# $\log_2 17 = 4.09$. Every image has its own noise, so that there is a standard error; and the
# terms of the bound say at which noise levels the bits are spent.

# %%
from genai_jax.evaluation.image_likelihood import BoundConfig, held_out_bits, make_bound

bound = make_bound(diffusion, data.levels, BoundConfig(evaluations=20))
bits = held_out_bits(bound, model, test, test_labels, num_classes=10, mesh=mesh)
print(f"{bits.mean:.3f} ± {bits.standard_error:.3f} bits per dimension of {bits.images} images")

# %% [markdown]
# ## Next
# - `python experiments/image_diffusion.py` trains a larger one and measures it.
# - `python experiments/image_sample.py --num-steps 5 10 50 --guidance-scale 1 3` draws one picture
#   with each setting.
# - `python experiments/image_evaluate.py` puts samples beside real images and simple densities.
