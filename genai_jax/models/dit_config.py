"""The shape of a DiT: its patches, its transformer, and what it is told of an image."""

import dataclasses
from typing import Any

from genai_jax.models.text_encoder import check_encoder
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.linear import scaled_std


def dit_trunk(num_layers: int, embed_dim: int, num_heads: int, **options: Any) -> TransformerConfig:
    """Describe the transformer of the DiT paper, of some size.

    Kernels begin as wide as Glorot and Bengio have those of the MLP, from D to 4 D and back.
    Attention is dense: likelihoods differentiate it forwards, which the blocked one cannot do.

    Args:
        num_layers: L.
        embed_dim: D.
        num_heads: N.
        options: Fields of `TransformerConfig` that are to be others.
    """
    fields: dict[str, Any] = {
        "norm": "layer",
        "norm_eps": 1e-6,
        "positions": "none",
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "activation": "gelu",
        "gated": False,
        "init_std": scaled_std(embed_dim, 4 * embed_dim),
        "attention": "dense",
    }
    return TransformerConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        causal=False,
        modulated=True,
        **(fields | options),
    )


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT.

    Attributes:
        image_size: Height and width of the images; 0 is to be replaced by the data's.
        channels: Channels of the images; 0 is to be replaced by the data's.
        patch_size: P, height and width of a patch; an image is (image_size / P)^2 tokens.
        transformer: The blocks: modulated, in both directions, without positions of their own.
        num_classes: Classes that an image may be told to be of; 0 is none.
        text: The encoder of captions; none takes no captions.
        learned_variance: Whether there are twice as many channels at the end: the variance too.
        fourier_frequencies: Exponents n of sin(2^n pi x) and cos(2^n pi x), which are appended to
            the input: fine detail, for likelihoods.
    """

    image_size: int = 0
    channels: int = 0
    patch_size: int = 4
    transformer: TransformerConfig = dataclasses.field(default_factory=lambda: dit_trunk(6, 192, 3))
    num_classes: int = 0
    text: TransformerConfig | None = None
    learned_variance: bool = False
    fourier_frequencies: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("image_size", "channels", "num_classes"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"`patch_size` must divide `image_size`; got {self.patch_size} and "
                f"{self.image_size}. Choose 1, 2 or 4."
            )
        trunk = self.transformer
        if trunk.causal or not trunk.modulated or trunk.positions != "none":
            raise ValueError(
                "The `transformer` of a DiT is modulated, sees in both directions, and has no "
                f"positions; got modulated {trunk.modulated}, causal {trunk.causal}, positions "
                f"{trunk.positions!r}. Start from `dit_trunk`."
            )
        if trunk.embed_dim % 4:
            raise ValueError(
                "`transformer.embed_dim` must be a multiple of 4, for positions in two "
                f"dimensions; got {trunk.embed_dim}."
            )
        if self.text is not None:
            check_encoder(self.text)
            if self.num_classes:
                raise ValueError(
                    f"An image has a class or a caption; got `num_classes` {self.num_classes} and "
                    "`text`. Leave one of them out."
                )

    @property
    def grid(self) -> int:
        """Patches from one side of an image to the other."""
        return self.image_size // self.patch_size

    @property
    def in_channels(self) -> int:
        """Channels of the input with its Fourier features."""
        return self.channels * (1 + 2 * len(self.fourier_frequencies))

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.channels * (2 if self.learned_variance else 1)
