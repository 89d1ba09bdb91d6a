"""Llama 2 and 3, Mistral, Qwen 2.5 and Qwen 3: what they share, and where they differ."""

from typing import Any

from genai_jax.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, canonical
from genai_jax.interop.settings import (
    KIND_NAMES,
    ConfigError,
    Settings,
    read_layer_kinds,
    read_rope,
    shortest_pattern,
    write_rope,
)
from genai_jax.nn.config import LayerKind, TransformerConfig

LLAMA_MODULES = {
    "embedding": "embed_tokens",
    "layers/{}/attention_norm": "layers.{}.input_layernorm",
    "layers/{}/attention/query": "layers.{}.self_attn.q_proj",
    "layers/{}/attention/key": "layers.{}.self_attn.k_proj",
    "layers/{}/attention/value": "layers.{}.self_attn.v_proj",
    "layers/{}/attention/output": "layers.{}.self_attn.o_proj",
    "layers/{}/attention/query_norm": "layers.{}.self_attn.q_norm",
    "layers/{}/attention/key_norm": "layers.{}.self_attn.k_norm",
    "layers/{}/mlp_norm": "layers.{}.post_attention_layernorm",
    "layers/{}/mlp/gate": "layers.{}.mlp.gate_proj",
    "layers/{}/mlp/up": "layers.{}.mlp.up_proj",
    "layers/{}/mlp/down": "layers.{}.mlp.down_proj",
    "final_norm": "norm",
}
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read_llama_like(
    settings: Settings,
    *,
    kinds: tuple[LayerKind, ...] | None = None,
    by_name: bool = False,
    activation: str = "hidden_act",
    **more: Any,
) -> TransformerConfig:
    """Read what Llama, Mistral, Qwen and Gemma have in common.

    Args:
        settings: Fields of the model.
        kinds: Kind of every layer; None is global.
        by_name: Whether the family has `layer_types`, which then come first.
        activation: Name of the field of the activation.
        more: Fields of the configuration that are this family's own.
    """
    settings.refuse("use_bidirectional_attention", "quantization_config", "pruned_heads")
    everywhere: tuple[LayerKind, ...] = ("global",)
    if by_name:
        pattern = read_layer_kinds(settings, kinds)
    else:
        pattern = shortest_pattern(kinds or everywhere)
    window = settings.maybe_whole("sliding_window")
    if "sliding" in pattern and window is None:
        raise ConfigError("config.json: sliding layers need `sliding_window`; got null.")
    fields: dict[str, Any] = {
        "vocab_size": settings.whole("vocab_size"),
        "num_layers": settings.layers(),
        "embed_dim": settings.whole("hidden_size"),
        "num_heads": settings.whole("num_attention_heads"),
        "num_kv_heads": settings.maybe_whole("num_key_value_heads"),
        "head_dim": settings.maybe_whole("head_dim"),
        "mlp_dim": settings.whole("intermediate_size"),
        "max_length": settings.whole("max_position_embeddings"),
        "norm_eps": settings.positive("rms_norm_eps"),
        "rope": more.pop("rope", None) or read_rope(settings),
        "activation": settings.one_of(activation, ACTIVATIONS),
        "tied": settings.truth("tie_word_embeddings"),
        "layer_pattern": pattern,
        "window": window if "sliding" in pattern else None,
    }
    return canonical(TransformerConfig(**fields | more))


def write_llama_like(config: TransformerConfig, **more: Any) -> dict[str, Any]:
    """Write what Llama, Mistral, Qwen and Gemma have in common."""
    fields = {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES.get(config.activation, "gelu_pytorch_tanh"),
        "tie_word_embeddings": config.tied,
    }
    return fields | write_rope(config.rope) | more


def _read_llama(settings: Settings) -> TransformerConfig:
    biased = settings.truth("attention_bias")
    return read_llama_like(
        settings, qkv_bias=biased, output_bias=biased, mlp_bias=settings.truth("mlp_bias")
    )


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    return write_llama_like(config, attention_bias=config.qkv_bias, mlp_bias=config.mlp_bias)


def _read_mistral(settings: Settings) -> TransformerConfig:
    # Absent it is 4,096; null switches it off.
    kind: LayerKind = "global" if settings["sliding_window"] is None else "sliding"
    return read_llama_like(settings, kinds=(kind,) * settings.layers())


def _write_mistral(config: TransformerConfig) -> dict[str, Any]:
    return write_llama_like(config, sliding_window=config.window)


def _qwen_kinds(settings: Settings) -> tuple[LayerKind, ...]:
    """Qwen slides from layer `max_window_layers` on, and only where `use_sliding_window` says."""
    layers, first = settings.layers(), settings.whole("max_window_layers", least=0)
    slides = settings.truth("use_sliding_window") and settings["sliding_window"] is not None
    return tuple("sliding" if slides and i >= first else "global" for i in range(layers))


def _read_qwen2(settings: Settings) -> TransformerConfig:
    return read_llama_like(settings, kinds=_qwen_kinds(settings), by_name=True, qkv_bias=True)


def _read_qwen3(settings: Settings) -> TransformerConfig:
    biased = settings.truth("attention_bias")
    return read_llama_like(
        settings,
        kinds=_qwen_kinds(settings),
        by_name=True,
        qk_norm=True,
        qkv_bias=biased,
        output_bias=biased,
    )


def _write_qwen(config: TransformerConfig, **more: Any) -> dict[str, Any]:
    kinds = list(config.layer_kinds)
    return write_llama_like(
        config,
        use_sliding_window="sliding" in kinds,
        sliding_window=config.window,
        max_window_layers=kinds.index("sliding") if "sliding" in kinds else len(kinds),
        layer_types=[KIND_NAMES[kind] for kind in kinds],
        **more,
    )


def _write_qwen3(config: TransformerConfig) -> dict[str, Any]:
    return _write_qwen(config, attention_bias=config.qkv_bias)


LLAMA = Family(
    "llama", "LlamaForCausalLM", LLAMA_MODULES, LLAMA_DEFAULTS, _read_llama, _write_llama
)
MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    LLAMA_MODULES,
    LLAMA_DEFAULTS
    | {
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    _read_mistral,
    _write_mistral,
)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", LLAMA_MODULES, _QWEN_DEFAULTS, _read_qwen2, _write_qwen)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    LLAMA_MODULES,
    _QWEN_DEFAULTS | {"head_dim": 128},
    _read_qwen3,
    _write_qwen3,
)
