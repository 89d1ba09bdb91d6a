"""The shape of a transformer: one frozen dataclass that can say GPT-2, Llama, Gemma and DiT."""

import dataclasses
import math
from typing import Literal

from genai_jax.nn.attention import Implementation
from genai_jax.nn.mlp import Activation
from genai_jax.nn.rope import RopeConfig

LayerKind = Literal["global", "sliding"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a transformer: a language model, an encoder, or the trunk of DiT.

    Attributes:
        vocab_size: V, number of token ids; 0 is to be replaced by the tokenizer's.
        num_layers: L, number of blocks.
        embed_dim: D, width of the residual stream.
        num_heads: N, number of query heads.
        num_kv_heads: K, number of key and value heads; None is one a query head. Divides N.
        head_dim: H, size of a head; None is D / N.
        mlp_dim: F, width inside the MLP; None is 4 D.
        max_length: Longest context in tokens; the table's length where positions are learned.
        causal: Whether the future is hidden, as language models need it.
        modulated: Whether a vector shifts, scales and gates each branch (the adaLN-zero of DiT);
            the norms before the branches then have no parameters of their own.
        norm: Which normalisation: layer (mean and variance) or rms.
        norm_eps: Added to the variance.
        norm_offset: Added to the scale of rms norms (1 in Gemma).
        norm_bias: Whether layer norms have a bias.
        post_norms: Whether each branch is normalised again before it is added (Gemma 2 and 3).
        qk_norm: Whether queries and keys are normalised a head (Qwen 3, Gemma 3).
        positions: How tokens know where they are: learned (a table), rope (rotation) or none.
        rope: Rotary frequencies.
        local_theta: Plain rotary base of the sliding layers (Gemma 3); None: they use `rope` too.
        attention_scale: Factor on the attention logits; None is 1 / sqrt(H).
        qkv_bias: Whether query, key and value have biases.
        output_bias: Whether the output projection of attention has a bias.
        mlp_bias: Whether the MLP has biases.
        window: Tokens that a sliding layer sees, the token itself among them.
        layer_pattern: Kinds of the layers, repeated over the depth.
        attention_softcap: Bound on the attention logits (Gemma 2); None is none.
        final_softcap: Bound on the output logits (Gemma 2); None is none.
        activation: Nonlinearity of the MLP.
        gated: Whether the MLP is gated (SwiGLU, GeGLU).
        tied: Whether the head shares the embedding's table.
        embedding_scale: Whether embeddings are multiplied by sqrt(D) (Gemma).
        dropout: Probability of zero after the embedding and after each branch, in training.
        attention_dropout: The same for the attention probabilities.
        init_std: Width of the normal distribution that kernels are drawn from; those that write
            into the residual are narrower by sqrt(2 L) where no gate holds them back.
        param_dtype: Type of the parameters.
        dtype: Type of the activations.
        attention: Which attention runs; auto takes the cheapest that can.
        layers: unrolled (fast on CPU) or scanned (compiles in constant time); same numbers.
        remat: What the backward pass computes again: none, full (all but the inputs of each
            layer), dots (all but the results of matrix products).
    """

    vocab_size: int = 0
    num_layers: int = 4
    embed_dim: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    max_length: int = 256
    causal: bool = True
    modulated: bool = False
    norm: Literal["layer", "rms"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_bias: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    positions: Literal["learned", "rope", "none"] = "rope"
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    local_theta: float | None = None
    attention_scale: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    window: int | None = None
    layer_pattern: tuple[LayerKind, ...] = ("global",)
    attention_softcap: float | None = None
    final_softcap: float | None = None
    activation: Activation = "silu"
    gated: bool = True
    tied: bool = True
    embedding_scale: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"
    attention: Implementation = "auto"
    layers: Literal["unrolled", "scanned"] = "unrolled"
    remat: Literal["none", "full", "dots"] = "none"

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built and options that would be ignored."""
        self._check_sizes()
        if "sliding" in self.layer_pattern and self.window is None:
            raise ValueError("A sliding layer needs `window` in tokens; got none. Try 1024.")
        if "sliding" in self.layer_pattern and not self.causal:
            raise ValueError(
                f"A sliding layer is causal; got `layer_pattern` {self.layer_pattern} with "
                "`causal` False. Choose the pattern ('global',)."
            )
        if self.local_theta is not None and self.positions != "rope":
            raise ValueError(f"`local_theta` needs positions 'rope'; got {self.positions!r}.")
        if not self.layer_pattern:
            raise ValueError("`layer_pattern` names at least one kind; got none. Try ('global',).")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1); got {getattr(self, name)}.")
        if self.attention == "blocked" and self.attention_dropout > 0:
            raise ValueError(
                "`attention` 'blocked' cannot drop probabilities; got `attention_dropout` "
                f"{self.attention_dropout}. Choose attention 'auto' or attention_dropout 0."
            )
        if self.norm == "layer" and self.norm_offset:
            raise ValueError(
                f"`norm_offset` belongs to rms norms; got {self.norm_offset} with norm 'layer'."
            )
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("`norm_bias` belongs to layer norms; got it with norm 'rms'.")
        if self.modulated and self.norm_bias:
            raise ValueError(
                "`modulated` norms have no parameters of their own; got `norm_bias` True. Leave it "
                "out: the modulation shifts."
            )

    def _check_sizes(self) -> None:
        if self.vocab_size < 0:
            raise ValueError(f"`vocab_size` must not be negative; got {self.vocab_size}.")
        for name in ("num_layers", "embed_dim", "num_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        heads = self.num_heads
        if heads % self.kv_heads:
            divisors = ", ".join(str(k) for k in range(1, heads + 1) if heads % k == 0)
            raise ValueError(
                f"`num_heads` must be divisible by `num_kv_heads`; got {heads} and "
                f"{self.kv_heads}. Choose num_kv_heads from {divisors}."
            )
        if self.head_dim is None and self.embed_dim % heads:
            raise ValueError(
                f"`embed_dim` must be divisible by `num_heads` where `head_dim` is not given; got "
                f"{self.embed_dim} and {heads}. Give head_dim, or choose an embed_dim such as "
                f"{math.ceil(self.embed_dim / heads) * heads}."
            )
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(
                f"Rotary positions need an even head size; got {self.head_size}. Give an even "
                "`head_dim`."
            )

    @property
    def kv_heads(self) -> int:
        """K, number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """H, elements of a head."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """F, width inside the MLP."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def query_scale(self) -> float:
        """Factor on the attention logits."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def output_std(self) -> float:
        r"""Initial width of what writes into the residual: $\sigma / \sqrt{2L}$.

        Where the branches are gated by a modulation, which begins at zero, it is $\sigma$.

        Reference: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2),
            section 2.3.
        """
        return self.init_std if self.modulated else self.init_std / math.sqrt(2 * self.num_layers)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, from the first to the last."""
        return tuple(
            self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_layers)
        )
