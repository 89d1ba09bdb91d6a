"""A family of language models: how its `config.json` says a shape, and its names of tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from genai_jax.interop.settings import Settings, shortest_pattern
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.rope import RopeConfig

ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
ACTIVATION_NAMES = {"gelu_exact": "gelu", "silu": "silu", "relu2": "relu2"}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family says what ours says.

    Attributes:
        model_type: Its name in `config.json`.
        architecture: Its class in transformers.
        modules: Its names of our modules; `{}` is the number of a layer.
        defaults: What absent fields of its `config.json` mean.
        read: From the fields to our configuration.
        write: From our configuration to the fields.
        prefixes: What may stand in front of all names but the head's; the first is written.
        turned: Whether its matrices are [out, in], as PyTorch's; GPT-2's are [in, out].
        buffers: Endings of tensors that are no parameters (older checkpoints have such); they are
            neither read nor written.
    """

    model_type: str
    architecture: str
    modules: Mapping[str, str]
    defaults: Mapping[str, Any]
    read: Callable[[Settings], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, Any]]
    prefixes: tuple[str, ...] = ("model.",)
    turned: bool = True
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)


NOT_SHAPE = (
    *("dropout", "attention_dropout", "init_std", "param_dtype", "dtype"),
    *("attention", "layers", "remat"),
)
"""Fields that say how a model is trained, stored or computed."""


def canonical(config: TransformerConfig) -> TransformerConfig:
    """Say the same shape in the same words: what is derived is written out.

    How a model is trained, stored or computed is left at its defaults; two configurations compute
    the same function where their canonical forms are equal.
    """
    kinds = shortest_pattern(config.layer_kinds)
    slides = "sliding" in kinds
    plain: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(TransformerConfig)
        if field.name in NOT_SHAPE
    }
    return dataclasses.replace(
        config,
        **plain,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_size,
        mlp_dim=config.mlp_size,
        attention_scale=config.query_scale,
        layer_pattern=kinds,
        window=config.window if slides else None,
        local_theta=config.local_theta if slides else None,
        rope=config.rope if config.positions == "rope" else RopeConfig(),
    )
