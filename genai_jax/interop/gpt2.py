"""GPT-2."""

from typing import Any

from genai_jax.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, canonical
from genai_jax.interop.settings import Settings
from genai_jax.nn.config import TransformerConfig

_GPT2_MODULES = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "layers/{}/attention_norm": "h.{}.ln_1",
    "layers/{}/attention/query": "h.{}.attn.c_attn",
    "layers/{}/attention/key": "h.{}.attn.c_attn",
    "layers/{}/attention/value": "h.{}.attn.c_attn",
    "layers/{}/attention/output": "h.{}.attn.c_proj",
    "layers/{}/mlp_norm": "h.{}.ln_2",
    "layers/{}/mlp/up": "h.{}.mlp.c_fc",
    "layers/{}/mlp/down": "h.{}.mlp.c_proj",
    "final_norm": "ln_f",
}


def _read_gpt2(settings: Settings) -> TransformerConfig:
    settings.refuse("add_cross_attention", "scale_attn_by_inverse_layer_idx", "quantization_config")
    return canonical(
        TransformerConfig(
            vocab_size=settings.whole("vocab_size"),
            num_layers=settings.layers("n_layer"),
            embed_dim=settings.whole("n_embd"),
            num_heads=settings.whole("n_head"),
            mlp_dim=settings.maybe_whole("n_inner"),
            max_length=settings.whole("n_positions"),
            norm="layer",
            norm_eps=settings.positive("layer_norm_epsilon"),
            norm_bias=True,
            positions="learned",
            attention_scale=None if settings.truth("scale_attn_weights") else 1.0,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            activation=settings.one_of("activation_function", ACTIVATIONS),
            gated=False,
            tied=settings.truth("tie_word_embeddings"),
        )
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.mlp_size,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.query_scale != 1.0,
        "activation_function": ACTIVATION_NAMES.get(config.activation, "gelu_new"),
        "tie_word_embeddings": config.tied,
    }


GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _GPT2_MODULES,
    {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    _read_gpt2,
    _write_gpt2,
    prefixes=("transformer.", ""),
    turned=False,
    buffers=(".attn.bias", ".attn.masked_bias"),
)
