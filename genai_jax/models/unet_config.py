"""The shape of a U-Net, and the plan of its stages that follows from it."""

import dataclasses
from typing import NamedTuple

from genai_jax.models.text_encoder import check_encoder
from genai_jax.nn.config import Dtype, TransformerConfig


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Shape and numerics of a U-Net.

    Attributes:
        image_size: Height and width of the images; 0 is to be replaced by the data's.
        channels: Channels of the images; 0 is to be replaced by the data's.
        width: Channels of the first resolution.
        multipliers: Channels of each resolution, in units of `width`; each has half the height and
            width of the one before.
        num_res_blocks: Residual blocks of each resolution on the way down; one more on the way up.
        attention_resolutions: Heights at which every block is followed by attention; between the
            two ways there always is one.
        num_heads: Heads of each attention.
        head_dim: Size of a head, which replaces `num_heads`; none leaves it.
        groups: Groups of each group norm.
        dropout: Probability of zero before the last convolution of each block, in training.
        num_classes: Classes that an image may be told to be of; 0 is none.
        text: The encoder of captions; none takes no captions.
        learned_variance: Whether there are twice as many channels at the end: the variance too.
        fourier_frequencies: Exponents n of sin(2^n pi x) and cos(2^n pi x), which are appended to
            the input: fine detail, for likelihoods (7 and 8 in the paper, for 256 levels).
        param_dtype: Type of the parameters.
        dtype: Type of the activations.
        remat: Whether the backward pass computes the inside of each block again, to save memory.
    """

    image_size: int = 0
    channels: int = 0
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8, 4)
    num_heads: int = 1
    head_dim: int | None = None
    groups: int = 32
    dropout: float = 0.0
    num_classes: int = 0
    text: TransformerConfig | None = None
    learned_variance: bool = False
    fourier_frequencies: tuple[int, ...] = ()
    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("image_size", "channels", "num_classes"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        for name in ("num_res_blocks", "num_heads", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.width < 4 or self.width % 2:
            raise ValueError(f"`width` must be even and at least 4; got {self.width}. Choose 32.")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"`multipliers` are at least 1, one a resolution; got {self.multipliers}. "
                "Choose (1, 2)."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1); got {self.dropout}. Try 0.1.")
        if self.text is not None:
            check_encoder(self.text)
            if self.num_classes:
                raise ValueError(
                    f"An image has a class or a caption; got `num_classes` {self.num_classes} and "
                    "`text`. Leave one of them out."
                )
        self._check_widths()
        if self.image_size:
            self._check_resolutions()

    def _check_widths(self) -> None:
        for stage in (*down_plan(self), *up_plan(self)):
            for width in {width for block in stage.blocks for width in block}:
                if width % self.groups:
                    raise ValueError(
                        f"`groups` must divide every width; got {self.groups} and {width}. Choose "
                        "`width` as a multiple of it, or fewer groups."
                    )
        attending = {self.width * self.multipliers[-1]} | {
            out for stage in down_plan(self) if stage.attends for _, out in stage.blocks
        }
        for width in sorted(attending):
            if width % (self.head_dim or self.num_heads):
                name = "num_heads" if self.head_dim is None else "head_dim"
                raise ValueError(
                    f"`{name}` must divide the width of every attention; got "
                    f"{getattr(self, name)} and {width}. Choose 1 head, or a head_dim that divides "
                    f"`width` {self.width}."
                )

    def _check_resolutions(self) -> None:
        halvings = len(self.multipliers) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"`image_size` must be halved {halvings} times for {len(self.multipliers)} "
                f"multipliers; got {self.image_size}. Choose a multiple of {2**halvings}, or fewer "
                "multipliers."
            )
        resolutions = [self.image_size >> i for i in range(halvings + 1)]
        strangers = [r for r in self.attention_resolutions if r not in resolutions]
        if strangers:
            raise ValueError(
                "`attention_resolutions` must be among the heights "
                f"{', '.join(map(str, resolutions))} of the U-Net; got "
                f"{', '.join(map(str, strangers))}. Choose of them, or none."
            )

    @property
    def level_dim(self) -> int:
        """Size of the vector that tells every block of the noise level and of the class."""
        return 4 * self.width

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.channels * (2 if self.learned_variance else 1)

    @property
    def in_channels(self) -> int:
        """Channels of the input with its Fourier features."""
        return self.channels * (1 + 2 * len(self.fourier_frequencies))

    def heads(self, width: int) -> int:
        """Count the heads of an attention of some width."""
        return self.num_heads if self.head_dim is None else width // self.head_dim


class StagePlan(NamedTuple):
    """What one resolution of one way is made of.

    Attributes:
        halvings: How often the image has been halved.
        blocks: Channels into and out of each residual block.
        attends: Whether attention follows each block.
        resamples: Whether a convolution to the next resolution ends it.
    """

    halvings: int
    blocks: tuple[tuple[int, int], ...]
    attends: bool
    resamples: bool


def down_plan(config: UNetConfig) -> list[StagePlan]:
    """List the stages from the image to the smallest resolution."""
    stages, width = [], config.width
    for i, multiplier in enumerate(config.multipliers):
        out = config.width * multiplier
        blocks = ((width, out), *(((out, out),) * (config.num_res_blocks - 1)))
        last = i == len(config.multipliers) - 1
        stages.append(StagePlan(i, blocks, _attends(config, i), not last))
        width = out
    return stages


def up_plan(config: UNetConfig) -> list[StagePlan]:
    """List the stages back to the image: every block also reads one result of the way down."""
    skips = [config.width]
    for stage in down_plan(config):
        skips += [out for _, out in stage.blocks]
        skips += [stage.blocks[-1][1]] if stage.resamples else []
    stages, width = [], config.width * config.multipliers[-1]
    for i, multiplier in reversed(list(enumerate(config.multipliers))):
        out, blocks = config.width * multiplier, []
        for _ in range(config.num_res_blocks + 1):
            blocks.append((width + skips.pop(), out))
            width = out
        stages.append(StagePlan(i, tuple(blocks), _attends(config, i), i > 0))
    return stages


def _attends(config: UNetConfig, halvings: int) -> bool:
    return config.image_size >> halvings in config.attention_resolutions
