"""DiT: a transformer on the patches of an image, steered by noise level, class or caption.

B images [B, H, W, C], NHWC; N patches of P × P pixels, D embed_dim. What belongs to this one model
(its presets, which axes are sharded, what decays, what Muon takes) lives here.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from genai_jax.models.dit_config import DiTConfig, dit_trunk
from genai_jax.models.text_encoder import TextEncoder
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.embeddings import Embedding, fourier_features, sinusoids
from genai_jax.nn.linear import Linear, scaled_std
from genai_jax.nn.modulation import Modulation
from genai_jax.nn.patches import grid_sinusoids, patchify, unpatchify
from genai_jax.nn.transformer import Surroundings, apply_layers, make_layers, make_norm

_LEVEL_DIM = 256  # of the noise level's sinusoids
# Number of the "layer" whose noise the text encoder's dropout takes.
_TEXT = 2**31 - 1


class _Context(NamedTuple):
    """A caption's tokens for all blocks to read, and which of them are no padding."""

    tokens: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]


class DiT(nnx.Module):
    """From a noisy image and its noise level to whatever the network is trained to say.

    Patches become tokens, with fixed positions. A caption's tokens stand beside them in every
    block, seen by all but its padding. One vector, the sum of what noise level, class and caption
    as a whole have to say, modulates every block. At first all blocks are the identity, and the
    network says zero.

    Attributes:
        config: Its shape.
        patch_in: From a patch, [P, P, C], to a token.
        level_in: First of the two layers that the noise level's sinusoids pass.
        level_out: The second.
        class_embedding: One vector a class, and a last one that says nothing.
        text: The encoder of captions.
        text_states: From the encoder's states to tokens.
        text_pooled: From their mean to the vector.
        layers: The blocks, as `nn.transformer.make_layers` holds them.
        final_norm: Normalises what `patch_out` reads.
        final_modulation: Shifts and scales it.
        patch_out: From a token to a patch of the result; begins at zero.

    Reference: Peebles and Xie, arXiv:2212.09748, section 3.2, in-context for captions and
        adaLN-zero for all else; it begins as there, but for kernels whose fan-in and fan-out are
        not the MLP's (`dit_trunk`).
    """

    def __init__(self, config: DiTConfig, key: PRNGKeyArray):
        """Draw the parameters; the numbers do not depend on how the layers are stored."""
        for name in ("image_size", "channels"):
            if not getattr(config, name):
                raise ValueError(f"`{name}` must be known; got 0. Take the data's.")
        trunk, text, size = config.transformer, config.text, config.patch_size
        d, dtype = trunk.embed_dim, trunk.param_dtype
        keys = jax.random.split(key, 10)

        def linear(fan_in: int, key: PRNGKeyArray) -> Linear:
            std = scaled_std(fan_in, d)
            return Linear((fan_in,), (d,), key, init_std=std, use_bias=True, param_dtype=dtype)

        self.config = config
        self.patch_in = Linear(
            (size, size, config.in_channels),
            (d,),
            keys[0],
            init_std=scaled_std(size * size * config.in_channels, d),
            use_bias=True,
            param_dtype=dtype,
        )
        self.level_in = linear(_LEVEL_DIM, keys[1])
        self.level_out = linear(d, keys[2])
        self.class_embedding = (
            Embedding(
                config.num_classes + 1, d, keys[3], init_std=trunk.init_std, param_dtype=dtype
            )
            if config.num_classes
            else None
        )
        self.text = None if text is None else TextEncoder(text, keys[4])
        self.text_states = None if text is None else linear(text.embed_dim, keys[5])
        self.text_pooled = None if text is None else linear(text.embed_dim, keys[6])
        self.layers = make_layers(trunk, keys[7])
        self.final_norm = make_norm(trunk, d, use_scale=False)
        self.final_modulation = Modulation(d, keys[8], branches=1, gated=False, param_dtype=dtype)
        self.patch_out = Linear(
            (d,),
            (size, size, config.out_channels),
            keys[9],
            init_std=0.0,
            use_bias=True,
            param_dtype=dtype,
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
        config, trunk = self.config, self.config.transformer
        size, channels = config.image_size, config.channels
        if x.shape[1:] != (size, size, channels):
            raise ValueError(
                f"Images must be {size} × {size} × {channels}, as `image_size` and `channels` say; "
                f"got {' × '.join(map(str, x.shape[1:]))}."
            )
        features = fourier_features(x, config.fourier_frequencies)
        patches = patchify(jnp.concatenate([x, features], axis=-1), config.patch_size)
        positions = jnp.asarray(grid_sinusoids(config.grid, config.grid, trunk.embed_dim), x.dtype)
        tokens = (self.patch_in(patches) + positions).astype(trunk.dtype)
        vector = self.level_out(jax.nn.silu(self.level_in(sinusoids(noise_level, _LEVEL_DIM))))

        told, context = self._read(condition, x.shape[0], key)
        vector = (vector + told).astype(trunk.dtype)

        n, segment_ids = tokens.shape[1], None
        if context is not None:
            # One segment: all patches, and the caption without its padding.
            tokens = jnp.concatenate([tokens, context.tokens.astype(tokens.dtype)], axis=1)
            seen = jnp.concatenate([jnp.ones((x.shape[0], n), bool), context.mask], axis=1)
            segment_ids = seen.astype(jnp.int32)
        keys = None if trunk.dropout == trunk.attention_dropout == 0 else key
        around = Surroundings({}, segment_ids, dropout_keys=keys, vector=vector)
        tokens, _ = apply_layers(trunk, self.layers, tokens, around)

        (adjustment,) = self.final_modulation(vector)
        read = adjustment.read(self.final_norm(tokens[:, :n])).astype(x.dtype)
        return unpatchify(self.patch_out(read), config.grid)

    def null_condition(self, condition: Any) -> Any:
        """Make the labels or captions, of the same shape, that say nothing."""
        if condition is None:
            return None
        return jnp.full_like(condition, 0 if self.text is not None else self.config.num_classes)

    def _read(
        self, condition: Any, rows: int, key: Key[Array, " b"] | None
    ) -> tuple[Float[Array, "#b d"], _Context | None]:
        """Embed what images should be: for the vector, and for attention to read."""
        axes = 2 if self.text is not None else 1 if self.class_embedding is not None else 0
        if condition is not None and condition.ndim != axes:
            wanted = ("no condition", "class labels [b]", "captions [b, l]")[axes]
            raise ValueError(
                f"This DiT takes {wanted}; got an array of shape {condition.shape}. Build it with "
                "`num_classes` for labels, with `text` for captions."
            )
        if self.text is not None and self.text_states is not None and self.text_pooled is not None:
            if key is not None:
                key = jax.vmap(lambda row: jax.random.fold_in(row, _TEXT))(key)
            nothing = jnp.zeros((rows, 1), jnp.int32)
            said = self.text(nothing if condition is None else condition, key)
            return self.text_pooled(said.pooled), _Context(self.text_states(said.states), said.mask)
        if self.class_embedding is not None:
            unknown = jnp.full((rows,), self.config.num_classes)
            return self.class_embedding(unknown if condition is None else condition), None
        return jnp.zeros((1, self.config.transformer.embed_dim)), None


# Right-aligned: a stack of layers has one more axis in front. A dimension that the mesh does not
# divide is replicated.
SHARDING_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attention/(query|key|value)/kernel$", PartitionSpec("fsdp", None, None)),
    (r"attention/output/kernel$", PartitionSpec(None, None, "fsdp")),
    (r"mlp/(gate|up)/kernel$", PartitionSpec("fsdp", None)),
    (r"modulation/linear/kernel$", PartitionSpec("fsdp", None, None, None)),
    (r"patch_out/kernel$", PartitionSpec("fsdp", None, None, None)),
    (r"(kernel|table)$", PartitionSpec("fsdp")),
)
"""Fully sharded data parallelism: every matrix is cut along D, the text encoder's along its own."""

_MATRIX_AXES = (
    (r"layers/.*attention/(query|key|value)/kernel$", (1, 2)),
    (r"layers/.*attention/output/kernel$", (2, 1)),
    (r"layers/.*mlp/(gate|up|down)/kernel$", (1, 1)),
)


def decays(name: str) -> bool:
    """Whether weight decay pulls at a parameter: at kernels and tables."""
    return name.endswith(("kernel", "table"))


def hidden_matrix(name: str) -> tuple[int, int] | None:
    """Say how many input and output axes a hidden matrix has; None for all other parameters.

    Hidden matrices, of the blocks and of the text encoder's, are what Muon takes. Modulations,
    which see one vector an image and begin at zero, are none.
    """
    return next((axes for pattern, axes in _MATRIX_AXES if re.search(pattern, name)), None)


def count_parameters(config: DiTConfig) -> int:
    """Count the parameters without making them; the fixed positions are none."""
    model = jax.eval_shape(lambda: DiT(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def flops_per_image(config: DiTConfig, caption_length: int | None = None) -> float:
    r"""Count the model FLOPs of training on one image: forward and backward, three times forward.

    Matrix products only, two FLOPs a product, without recomputation; a caption's padding counts.

    Args:
        config: Its shape.
        caption_length: Slots of a caption; None is the encoder's longest.
    """
    d, patches = config.transformer.embed_dim, config.grid**2
    pixels = config.patch_size**2
    vector = d * (_LEVEL_DIM + d)
    total = patches * pixels * d * (config.in_channels + config.out_channels) + vector + 2 * d * d
    tokens = patches
    if config.text is not None:
        words = config.text.max_length if caption_length is None else caption_length
        total += _stack_products(config.text, words) + (words + 1) * config.text.embed_dim * d
        tokens += words
    return 3 * 2 * (total + _stack_products(config.transformer, tokens))


def _stack_products(config: TransformerConfig, tokens: int) -> int:
    """Count the products of a forward pass through all blocks, every token seeing all."""
    d, n, k, h = config.embed_dim, config.num_heads, config.kv_heads, config.head_size
    per_token = d * h * (2 * n + 2 * k) + d * config.mlp_size * (3 if config.gated else 2)
    modulation = 6 * d * d if config.modulated else 0
    return config.num_layers * (tokens * per_token + 2 * tokens**2 * n * h + modulation)


def _latents(num_layers: int, embed_dim: int, num_heads: int) -> DiTConfig:
    """Describe a DiT of the paper: on latents of 256 x 256 images, patches of 2 x 2."""
    return DiTConfig(
        image_size=32,
        channels=4,
        patch_size=2,
        transformer=dit_trunk(num_layers, embed_dim, num_heads, layers="scanned"),
        num_classes=1000,
        learned_variance=True,
    )


# Peebles and Xie, arXiv:2212.09748, tables 1 and 4.
DIT_S_2 = _latents(12, 384, 6)
DIT_B_2 = _latents(12, 768, 12)
DIT_L_2 = _latents(24, 1024, 16)
DIT_XL_2 = _latents(28, 1152, 16)

# The B of the paper on the pixels of 64 x 64 images: 256 tokens of 48 numbers each.
IMAGENET64 = DiTConfig(
    image_size=64,
    channels=3,
    patch_size=4,
    transformer=dit_trunk(12, 768, 12, dtype="bfloat16", layers="scanned", remat="full"),
    num_classes=1000,
)

# 64 patches and up to 32 words of a caption.
SHAPES = DiTConfig(
    image_size=32,
    channels=3,
    patch_size=4,
    transformer=dit_trunk(6, 192, 3),
    text=TransformerConfig(
        num_layers=2, embed_dim=128, num_heads=4, max_length=32, causal=False, attention="dense"
    ),
)
