"""diffusers' U-Net with our weights computes what ours does, forwards and backwards."""

import dataclasses
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.unet import CIFAR10_DDPM, UNet
from genai_jax.models.unet_config import UNetConfig
from genai_jax.paths import map_named, named_leaves

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("diffusers", reason="parity needs the extra [parity]")
import diffusers
import torch

# Theirs has attention at the smallest resolution's blocks or not, as the types of blocks say.
SMALL = UNetConfig(
    image_size=16,
    channels=1,
    width=16,
    multipliers=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(8,),
    groups=8,
)
MANY_HEADS = dataclasses.replace(SMALL, head_dim=8, num_classes=4)
CASES = {
    "google/ddpm-cifar10-32": (CIFAR10_DDPM, 1),
    "small": (SMALL, 3),
    "heads and classes": (MANY_HEADS, 3),
}

RESIDUAL = {
    "first_norm": "norm1",
    "first_conv": "conv1",
    "level": "time_emb_proj",
    "second_norm": "norm2",
    "second_conv": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "output": "to_out.0",
}
OUTSIDE = {
    "level_in": "time_embedding.linear_1",
    "level_out": "time_embedding.linear_2",
    "class_embedding": "class_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def their_name(name):
    """Translate `down/0/blocks/1/residual/first_conv/kernel`."""
    *path, leaf = name.split("/")
    leaf = {"kernel": "weight", "scale": "weight", "table": "weight", "bias": "bias"}[leaf]
    if path[0] in OUTSIDE:
        return f"{OUTSIDE[path[0]]}.{leaf}"
    if path[0] == "middle":
        place, number = "mid_block", path[1]
    else:
        place = f"{path[0]}_blocks.{path[1]}"
        if path[2] == "resample":
            return f"{place}.{path[0]}samplers.0.conv.{leaf}"
        number = path[3]
    kind, part = path[-2:]
    if kind == "residual":
        return f"{place}.resnets.{number}.{RESIDUAL[part]}.{leaf}"
    return f"{place}.attentions.{number}.{ATTENTION[part]}.{leaf}"


def their_value(name, value, shape):
    """Lay a kernel out as PyTorch does: outputs first."""
    value = np.asarray(value)
    if name.endswith("kernel") and value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif name.endswith("kernel"):
        inputs = math.prod(value.shape[:-1]) if name.endswith("output/kernel") else value.shape[0]
        value = value.reshape(inputs, -1).T
    return torch.from_numpy(np.ascontiguousarray(value).reshape(shape).copy())


def make_theirs(config, ours):
    attends = [
        config.image_size >> i in config.attention_resolutions
        for i in range(len(config.multipliers))
    ]
    theirs = diffusers.UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.channels,
        out_channels=config.channels,
        center_input_sample=False,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        block_out_channels=tuple(config.width * m for m in config.multipliers),
        layers_per_block=config.num_res_blocks,
        mid_block_scale_factor=1,
        downsample_padding=0,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.groups,
        norm_eps=1e-6,
        num_class_embeds=config.num_classes + 1 if config.num_classes else None,
    )
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    weights = {}
    for name, value in named_leaves(ours):
        weights[their_name(name)] = their_value(name, value, shapes[their_name(name)])
    theirs.load_state_dict(weights, strict=True)  # every parameter of either has its place
    return theirs.eval()


def stir(name, leaf):
    """Redraw a parameter: as drawn, every branch ends almost at zero."""
    noise = jax.random.normal(jax.random.key(len(name) + leaf.size), leaf.shape)
    if name.endswith("scale"):
        return 1 + 0.1 * noise
    if not name.endswith("kernel"):
        return 0.1 * noise
    outputs = (
        leaf.shape[-1] if leaf.ndim != 3 or "output" in name else leaf.shape[1] * leaf.shape[2]
    )
    return noise * math.sqrt(outputs / leaf.size)


@pytest.mark.parametrize("case", CASES)
def test_diffusers_computes_the_same(case):
    config, rows = CASES[case]
    ours = jax.jit(lambda: map_named(stir, UNet(config, jax.random.key(0))))()
    theirs = make_theirs(config, ours)
    size = (rows, config.image_size, config.image_size, config.channels)
    x, weights = np.asarray(jax.random.normal(jax.random.key(1), (2, *size)))
    level = np.asarray([7.0, 0.5, 998.0], np.float32)[:rows]
    labels = np.asarray([0, 3, config.num_classes])[:rows] if config.num_classes else None
    told_ours = None if labels is None else jnp.asarray(labels, jnp.int32)

    @jax.jit
    def compute(model, x):
        y, back = jax.vjp(lambda x: model(x, jnp.asarray(level), told_ours), x)
        return y, back(jnp.asarray(weights))[0]

    y, gradient = compute(ours, jnp.asarray(x))
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    told = None if labels is None else torch.from_numpy(labels)
    expected = theirs(image, torch.from_numpy(level), class_labels=told).sample
    expected.backward(torch.from_numpy(weights.transpose(0, 3, 1, 2).copy()))
    scale = float(expected.detach().abs().max())
    assert scale > 0.1
    for actual, wanted in ((y, expected.detach()), (gradient, image.grad)):
        wanted = wanted.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=1e-3)
