"""A small convolutional classifier of images, with one head or several; judges samples.

B images [B, H, W, C], NHWC. What belongs to this one model (which axes are sharded, what decays,
what Muon takes) lives here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, PRNGKeyArray

from genai_jax.nn.conv import Conv
from genai_jax.nn.dropout import dropout
from genai_jax.nn.group_norm import GroupNorm
from genai_jax.nn.linear import Linear

_EPS = 1e-6  # of all group norms
_MOST_GROUPS = 8
_RECTIFIED = 2.0  # variance of a kernel before an activation that halves what it is given


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a classifier.

    Attributes:
        image_size: Height and width of the images, in pixels; 0 is to be replaced by the data's.
        channels: Channels of the images; 0 is to be replaced by the data's.
        widths: Channels of each resolution, from the image's own on; each is half of the one
            before, and has two convolutions.
        feature_dim: Width of the layer before the heads.
        heads: Number of classes of each head; none is to be replaced by the data's.
        dropout: Probability of zero before and after the last layer, in training.
    """

    image_size: int = 0
    channels: int = 0
    widths: tuple[int, ...] = (32, 64)
    feature_dim: int = 64
    heads: tuple[int, ...] = ()
    dropout: float = 0.3

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("image_size", "channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if not self.widths or min(self.widths) < 1 or self.feature_dim < 1:
            raise ValueError(
                "`widths` and `feature_dim` must be positive; got "
                f"{self.widths} and {self.feature_dim}. Choose (32, 64) and 64."
            )
        if any(classes < 2 for classes in self.heads):
            raise ValueError(f"Each of `heads` must have at least 2 classes; got {self.heads}.")
        halvings = len(self.widths) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"`image_size` must be halved once for each of `widths` but the first; got "
                f"{self.image_size} and {self.widths}. Give fewer widths, or a size that "
                f"{2**halvings} divides."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1); got {self.dropout}.")


class ConvNorm(nnx.Module):
    """A convolution, group normalisation and SiLU."""

    def __init__(self, in_width: int, out_width: int, stride: int, key: PRNGKeyArray):
        """Draw the parameters."""
        self.conv = Conv(in_width, out_width, key, stride=stride, init_scale=_RECTIFIED)
        self.norm = GroupNorm(out_width, math.gcd(out_width, _MOST_GROUPS), eps=_EPS)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Compute all three."""
        return self.norm(self.conv(x), silu=True)


class Classifier(nnx.Module):
    """From images to the logits of every head.

    Attributes:
        config: Its shape.
        blocks: Convolutions, two a resolution; the first of a resolution halves.
        last: From all that is left of an image to its features.
        heads: The classes of all heads, one head after the other.
    """

    def __init__(self, config: ClassifierConfig, key: PRNGKeyArray):
        """Draw the parameters."""
        for name in ("image_size", "channels", "heads"):
            if not getattr(config, name):
                raise ValueError(f"`{name}` must be known; got none. Take the data's.")
        keys = iter(jax.random.split(key, 2 * len(config.widths) + 2))
        self.config = config
        blocks, width = [], config.channels
        for level, out_width in enumerate(config.widths):
            blocks.append(ConvNorm(width, out_width, 2 if level else 1, next(keys)))
            blocks.append(ConvNorm(out_width, out_width, 1, next(keys)))
            width = out_width
        self.blocks = nnx.List(blocks)
        left = width * (config.image_size >> (len(config.widths) - 1)) ** 2
        self.last = Linear(
            (left,),
            (config.feature_dim,),
            next(keys),
            init_std=math.sqrt(_RECTIFIED / left),
            use_bias=True,
        )
        self.heads = Linear(
            (config.feature_dim,),
            (sum(config.heads),),
            next(keys),
            init_std=config.feature_dim**-0.5,
            use_bias=True,
        )

    def features(
        self, images: Float[Array, "b h w c"], key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Compute what the heads read.

        Args:
            images: In [-1, 1].
            key: One key a row for dropout; None switches it off.

        Raises:
            ValueError: If the images have another size.
        """
        config = self.config
        size, channels = config.image_size, config.channels
        if images.shape[1:] != (size, size, channels):
            raise ValueError(
                f"Images must be {size} × {size} × {channels}, as `image_size` and `channels` say; "
                f"got {' × '.join(map(str, images.shape[1:]))}."
            )
        x = images
        for block in self.blocks:
            x = block(x)
        x = x.reshape(len(x), -1)
        if key is not None:
            x = dropout(x, key, config.dropout, place=0)
        return jax.nn.silu(self.last(x))

    def __call__(
        self, images: Float[Array, "b h w c"], key: Key[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b classes"], ...]:
        """Compute the float32 logits of every head; arguments as those of `features`."""
        config = self.config
        features = self.features(images, key)
        if key is not None:
            features = dropout(features, key, config.dropout, place=1)
        logits = self.heads(features).astype(jnp.float32)
        ends = [sum(config.heads[: i + 1]) for i in range(len(config.heads))]
        return tuple(logits[:, e - n : e] for e, n in zip(ends, config.heads, strict=True))


SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = ((r"kernel$", PartitionSpec("fsdp")),)
"""Fully sharded data parallelism: kernels are cut along their last axis."""


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: at kernels."""
    return name.endswith("kernel")


def hidden_matrix(name: str) -> tuple[int, int] | None:
    """Say how many input and output axes a hidden matrix has; None for all other parameters.

    Hidden matrices are what Muon takes: a convolution's has height, width and channels of the
    input as its rows.
    """
    if name.endswith("blocks/0/conv/kernel") or not name.endswith("kernel"):
        return None
    if name.endswith("conv/kernel"):
        return (3, 1)
    return (1, 1) if name.endswith("last/kernel") else None


def count_parameters(config: ClassifierConfig) -> int:
    """Count the parameters without making them."""
    model = jax.eval_shape(lambda: Classifier(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(model))
