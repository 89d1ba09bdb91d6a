"""Gemma 2 and Gemma 3 (its text model)."""

from typing import Any

from genai_jax.interop.family import ACTIVATION_NAMES, Family
from genai_jax.interop.llama import (
    LLAMA_DEFAULTS,
    LLAMA_MODULES,
    read_llama_like,
    write_llama_like,
)
from genai_jax.interop.settings import KIND_NAMES, Settings, read_two_ropes
from genai_jax.nn.config import TransformerConfig

_GEMMA_MODULES = LLAMA_MODULES | {
    "layers/{}/attention_post_norm": "layers.{}.post_attention_layernorm",
    "layers/{}/mlp_norm": "layers.{}.pre_feedforward_layernorm",
    "layers/{}/mlp_post_norm": "layers.{}.post_feedforward_layernorm",
}
_GEMMA_DEFAULTS = LLAMA_DEFAULTS | {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}


def _gemma(settings: Settings) -> dict[str, Any]:
    biased = settings.truth("attention_bias")
    return {
        "by_name": True,
        "norm_offset": 1.0,
        "post_norms": True,
        "embedding_scale": True,
        "activation": "hidden_activation",
        "qkv_bias": biased,
        "output_bias": biased,
    }


def _read_gemma2(settings: Settings) -> TransformerConfig:
    layers = settings.layers()
    return read_llama_like(
        settings,
        kinds=tuple("global" if i % 2 else "sliding" for i in range(layers)),
        attention_scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        attention_softcap=settings.maybe_positive("attn_logit_softcapping"),
        final_softcap=settings.maybe_positive("final_logit_softcapping"),
        **_gemma(settings),
    )


def _read_gemma3(settings: Settings) -> TransformerConfig:
    layers = settings.layers()
    period = settings.whole(
        "_sliding_window_pattern"
        if settings["sliding_window_pattern"] is None
        else "sliding_window_pattern"
    )
    # Theirs has the field and does not use it.
    settings.refuse("attn_logit_softcapping", default=None)
    rope, local_theta = read_two_ropes(settings)
    return read_llama_like(
        settings,
        kinds=tuple("sliding" if (i + 1) % period else "global" for i in range(layers)),
        attention_scale=settings.positive("query_pre_attn_scalar") ** -0.5,
        final_softcap=settings.maybe_positive("final_logit_softcapping"),
        qk_norm=True,
        rope=rope,
        local_theta=local_theta,
        **_gemma(settings),
    )


def _write_gemma(config: TransformerConfig) -> dict[str, Any]:
    fields = write_llama_like(
        config,
        hidden_activation=ACTIVATION_NAMES.get(config.activation, "gelu_pytorch_tanh"),
        query_pre_attn_scalar=_scalar(config.query_scale),
        attn_logit_softcapping=config.attention_softcap,
        final_logit_softcapping=config.final_softcap,
        sliding_window=config.window,
        layer_types=[KIND_NAMES[kind] for kind in config.layer_kinds],
        attention_bias=config.qkv_bias,
    )
    del fields["hidden_act"]
    return fields


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    return _write_gemma(config) | {"rope_local_base_freq": config.local_theta}


def _scalar(scale: float) -> int | float:
    """Give the number whose inverse root a scale is, whole where it is nearly so."""
    scalar = scale**-2
    return round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar


GEMMA2 = Family(
    "gemma2", "Gemma2ForCausalLM", _GEMMA_MODULES, _GEMMA_DEFAULTS, _read_gemma2, _write_gemma
)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    _GEMMA_MODULES,
    _GEMMA_DEFAULTS
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "_sliding_window_pattern": 6,
    },
    _read_gemma3,
    _write_gemma3,
)
