"""The U-Net of DDPM: residual blocks down and up a pyramid of resolutions, with attention at some.

B images [B, H, W, C], NHWC. What belongs to this one model (its presets, which axes are sharded,
what decays, what Muon takes) lives here.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, PRNGKeyArray

from genai_jax.models.text_encoder import TextEncoder
from genai_jax.models.unet_config import StagePlan, UNetConfig, down_plan, up_plan
from genai_jax.nn.conv import Conv, resize_nearest
from genai_jax.nn.embeddings import Embedding, fourier_features, sinusoids
from genai_jax.nn.group_norm import GroupNorm
from genai_jax.nn.image_attention import ImageAttention, Text
from genai_jax.nn.linear import ALMOST_ZERO, Linear, scaled_std
from genai_jax.nn.residual_block import ResidualBlock

_EPS = 1e-6  # of all group norms
# Number of the "block" whose noise the text encoder's dropout takes.
_TEXT = 2**31 - 1


class Block(nnx.Module):
    """A residual block and, at some resolutions, attention."""

    def __init__(
        self, config: UNetConfig, in_width: int, out_width: int, attends: bool, key: PRNGKeyArray
    ):
        """Draw the parameters."""
        residual_key, attention_key = jax.random.split(key)
        norms: dict[str, Any] = {
            "groups": config.groups,
            "eps": _EPS,
            "param_dtype": config.param_dtype,
        }
        self.residual = ResidualBlock(
            in_width,
            out_width,
            config.level_dim,
            residual_key,
            dropout=config.dropout,
            **norms,
        )
        self.attention = (
            ImageAttention(
                out_width,
                config.heads(out_width),
                attention_key,
                text_dim=0 if config.text is None else config.text.embed_dim,
                **norms,
            )
            if attends
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        level: Float[Array, "b e"],
        text: Text | None,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w o"]:
        """Compute both.

        Barriers keep XLA's CPU compiler from fusing what leads to a half into all that reads it,
        and so, backwards too, from computing it several times (benchmarks/README.md).
        """
        x = self.residual(jax.lax.optimization_barrier(x), level, keys)
        if self.attention is None:
            return x
        return self.attention(jax.lax.optimization_barrier(x), text)


class Stage(nnx.Module):
    """The blocks of one resolution, and the convolution that leads to the next one."""

    def __init__(self, config: UNetConfig, plan: StagePlan, key: PRNGKeyArray, *, down: bool):
        """Draw the parameters; stages on the way down halve, those on the way up double."""
        *keys, last = jax.random.split(key, len(plan.blocks) + 1)
        self.blocks = nnx.List(
            [
                Block(config, i, o, plan.attends, k)
                for (i, o), k in zip(plan.blocks, keys, strict=True)
            ]
        )
        width = plan.blocks[-1][1]
        stride, dtype = 2 if down else 1, config.param_dtype
        self.resample = (
            Conv(width, width, last, stride=stride, param_dtype=dtype) if plan.resamples else None
        )


def _linear(config: UNetConfig, fan_in: int, fan_out: int, key: PRNGKeyArray) -> Linear:
    return Linear(
        (fan_in,),
        (fan_out,),
        key,
        init_std=scaled_std(fan_in, fan_out),
        uniform=True,
        use_bias=True,
        param_dtype=config.param_dtype,
    )


class UNet(nnx.Module):
    """From a noisy image and its noise level to whatever the network is trained to say.

    Attributes:
        config: Its shape.
        level_in: First of the two layers that the noise level's sinusoids pass.
        level_out: The second.
        class_embedding: One vector a class, and a last one that says nothing.
        text: The encoder of captions, whose states every attention reads.
        text_pooled: From their mean to the vector that every block is told.
        conv_in: From the image to the first width.
        down: Stages, each at half the resolution of the one before.
        middle: Two blocks at the smallest resolution, attention between them.
        up: Stages back to the image; each block also reads one result of `down`.
        norm_out: Normalises what `conv_out` reads.
        conv_out: To the channels of the result; begins almost at zero.

    Reference: Ho et al., arXiv:2006.11239, appendix B; initial values (variance scaling) as in the
        code of that paper; Fourier features: Kingma et al., arXiv:2107.00630, appendix C.
    """

    def __init__(self, config: UNetConfig, key: PRNGKeyArray):
        """Draw the parameters."""
        for name in ("image_size", "channels"):
            if not getattr(config, name):
                raise ValueError(f"`{name}` must be known; got 0. Take the data's.")
        width, dtype = config.width, config.param_dtype
        last = width * config.multipliers[-1]
        keys = jax.random.split(key, 10)
        text = config.text
        self.config = config
        self.level_in = _linear(config, width, config.level_dim, keys[0])
        self.level_out = _linear(config, config.level_dim, config.level_dim, keys[1])
        self.class_embedding = (
            Embedding(
                config.num_classes + 1, config.level_dim, keys[2], init_std=1.0, param_dtype=dtype
            )
            if config.num_classes
            else None
        )
        self.text = None if text is None else TextEncoder(text, keys[8])
        self.text_pooled = (
            None if text is None else _linear(config, text.embed_dim, config.level_dim, keys[9])
        )
        self.conv_in = Conv(config.in_channels, width, keys[3], param_dtype=dtype)
        self.down = _stages(config, down_plan(config), keys[4], down=True)
        first, second = jax.random.split(keys[5])
        self.middle = nnx.List(
            [Block(config, last, last, True, first), Block(config, last, last, False, second)]
        )
        self.up = _stages(config, up_plan(config), keys[6], down=False)
        self.norm_out = GroupNorm(width, config.groups, eps=_EPS, param_dtype=dtype)
        self.conv_out = Conv(
            width, config.out_channels, keys[7], init_scale=ALMOST_ZERO, param_dtype=dtype
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_level: Float[Array, " b"],
        condition: Any = None,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Compute what the network says of noisy images.

        Args:
            x: Noisy images.
            noise_level: One real number a row.
            condition: Class labels below `num_classes`, or `num_classes` for "unknown"; or
                captions, token ids [b, l] with 0 for padding; None says nothing of all images.
            key: One key a row for dropout; None switches it off.

        Returns:
            The target, and behind it, where it is learned, as many channels of variance, in the
            dtype of `x`.

        Raises:
            ValueError: If the images have another size, or the condition is not of this model.
        """
        config = self.config
        size, channels = config.image_size, config.channels
        if x.shape[1:] != (size, size, channels):
            raise ValueError(
                f"Images must be {size} × {size} × {channels}, as `image_size` and `channels` say; "
                f"got {' × '.join(map(str, x.shape[1:]))}."
            )
        told, text = self._read(condition, x.shape[0], key)
        hidden = jax.nn.silu(self.level_in(sinusoids(noise_level, config.width)))
        # Past the SiLU that every block would begin with.
        level = jax.nn.silu(self.level_out(hidden) + told).astype(config.dtype)
        run = _Runner(level, text, None if config.dropout == 0 else key, config.remat)
        features = fourier_features(x, config.fourier_frequencies)
        h = self.conv_in(jnp.concatenate([x, features], axis=-1).astype(config.dtype))
        skips = [h]
        for stage in self.down:
            for block in stage.blocks:
                h = run(block, h)
                skips.append(h)
            if stage.resample is not None:
                h = stage.resample(h)
                skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for stage in self.up:
            for block in stage.blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
            if stage.resample is not None:
                h = stage.resample(resize_nearest(h))
        return self.conv_out(self.norm_out(h, silu=True)).astype(x.dtype)

    def null_condition(self, condition: Any) -> Any:
        """Make the labels or captions, of the same shape, that say nothing."""
        if condition is None:
            return None
        return jnp.full_like(condition, 0 if self.text is not None else self.config.num_classes)

    def _read(
        self, condition: Any, rows: int, key: Key[Array, " b"] | None
    ) -> tuple[Float[Array, "#b e"], Text | None]:
        """Embed what images should be: for every block, and for attention to read."""
        axes = 2 if self.text is not None else 1 if self.class_embedding is not None else 0
        if condition is not None and condition.ndim != axes:
            wanted = ("no condition", "class labels [b]", "captions [b, l]")[axes]
            raise ValueError(
                f"This U-Net takes {wanted}; got an array of shape {condition.shape}. Build it "
                "with `num_classes` for labels, with `text` for captions."
            )
        if self.text is not None and self.text_pooled is not None:
            if key is not None:
                key = jax.vmap(lambda row: jax.random.fold_in(row, _TEXT))(key)
            nothing = jnp.zeros((rows, 1), jnp.int32)
            said = self.text(nothing if condition is None else condition, key)
            return self.text_pooled(said.pooled), Text(said.states, said.mask)
        if self.class_embedding is not None:
            unknown = jnp.full((rows,), self.config.num_classes)
            return self.class_embedding(unknown if condition is None else condition), None
        return jnp.zeros((1, self.config.level_dim)), None


def _stages(config: UNetConfig, plans: list[StagePlan], key: PRNGKeyArray, *, down: bool) -> Any:
    keys = jax.random.split(key, len(plans))
    return nnx.List([Stage(config, p, k, down=down) for p, k in zip(plans, keys, strict=True)])


class _Runner:
    """Runs blocks on what they share, each with dropout keys of its own."""

    def __init__(self, level: Array, text: Text | None, keys: Array | None, remat: bool):
        self.level, self.text, self.keys = level, text, keys
        self.numbers: Iterator[int] = iter(range(2**31))
        self.remat = remat

    def __call__(self, block: Block, x: Array) -> Array:
        number, keys = next(self.numbers), self.keys
        if keys is not None:
            keys = jax.vmap(lambda row: jax.random.fold_in(row, number))(keys)
        run = jax.checkpoint(Block.__call__) if self.remat else Block.__call__
        return run(block, x, self.level, self.text, keys)


SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(kernel|table)$", PartitionSpec("fsdp")),
)
"""Fully sharded data parallelism: kernels and tables are cut along their last axis."""


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: at kernels and tables."""
    return name.endswith(("kernel", "table"))


def hidden_matrix(name: str) -> tuple[int, int] | None:
    """Say how many input and output axes a hidden matrix has; None for all other parameters.

    Hidden matrices, those of blocks, between resolutions and of the text encoder's layers, are what
    Muon takes: a convolution's has height, width and channels of the input as its rows.
    """
    if not re.search(r"(^|/)(down|middle|up|layers)/.*kernel$", name):
        return None
    if "conv/" in name or "resample/" in name:
        return (3, 1)
    if name.endswith("attention/output/kernel"):
        return (2, 1)
    return (1, 2) if "attention/" in name else (1, 1)


def count_parameters(config: UNetConfig) -> int:
    """Count the parameters without making them."""
    model = jax.eval_shape(lambda: UNet(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def flops_per_image(config: UNetConfig) -> float:
    r"""Count the model FLOPs of training on one image: forward and backward, three times forward.

    Convolutions and matrix products only, two FLOPs a product, without recomputation; padding
    counts as if it were image.
    """
    down, up = down_plan(config), up_plan(config)
    last = config.width * config.multipliers[-1]
    depth = len(config.multipliers) - 1
    middle = (
        StagePlan(depth, ((last, last),), True, False),
        StagePlan(depth, ((last, last),), False, False),
    )
    total = config.level_dim * (config.width + config.level_dim)
    total += 9 * config.image_size**2 * config.width * (config.in_channels + config.out_channels)
    for stages, doubling in ((down, -1), (middle, 0), (up, 1)):
        for stage in stages:
            pixels = (config.image_size >> stage.halvings) ** 2
            for i, o in stage.blocks:
                total += config.level_dim * o + pixels * (
                    9 * o * (i + o) + (i * o if i != o else 0)
                )
                total += pixels * (4 * o**2 + 2 * pixels * o) if stage.attends else 0
            if stage.resamples:
                total += int(9 * pixels * 4.0**doubling) * stage.blocks[-1][1] ** 2
    return 3 * 2 * total


# Ho et al., arXiv:2006.11239, appendix B: 35.7 M and 114 M parameters.
CIFAR10_DDPM = UNetConfig(
    image_size=32,
    channels=3,
    width=128,
    multipliers=(1, 2, 2, 2),
    num_res_blocks=2,
    attention_resolutions=(16,),
    dropout=0.1,
)
LSUN_DDPM = UNetConfig(
    image_size=256,
    channels=3,
    width=128,
    multipliers=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(16,),
)
