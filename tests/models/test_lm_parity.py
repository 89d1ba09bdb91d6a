"""Logits of other people's models: transformers computes them, and ours with the same weights."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.rope import RopeConfig
from genai_jax.paths import map_named

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import torch
import transformers

V, D, F, L, N, K, H, T = 61, 32, 48, 4, 4, 2, 8, 40

BASE = TransformerConfig(
    vocab_size=V,
    num_layers=L,
    embed_dim=D,
    num_heads=N,
    num_kv_heads=K,
    mlp_dim=F,
    max_length=64,
    norm_eps=1e-6,
    tied=False,
)
THEIRS = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA = dataclasses.replace(
    BASE,
    head_dim=16,
    norm_offset=1.0,
    post_norms=True,
    activation="gelu",
    embedding_scale=True,
    window=7,
    attention_scale=24**-0.5,
    tied=True,
)
GEMMA_THEIRS = THEIRS | {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
SLIDING = ["sliding_attention", "full_attention"] * 2


def llama(**changes):
    return transformers.LlamaConfig(**THEIRS | {"rope_parameters": PLAIN} | changes)


def replace(**changes):
    return dataclasses.replace(BASE, **changes)


# Their configuration, made when it is needed, and ours.
FAMILIES = {
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=V, n_embd=D, n_layer=L, n_head=N, n_positions=64, n_inner=F
        ),
        replace(
            num_kv_heads=None,
            norm="layer",
            norm_eps=1e-5,
            norm_bias=True,
            positions="learned",
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            activation="gelu",
            gated=False,
            tied=True,
        ),
    ),
    "llama2": (llama, BASE),
    "llama3": (
        lambda: llama(rope_parameters=LLAMA3),
        replace(rope=RopeConfig(500.0, "llama3", factor=4.0, original_length=32)),
    ),
    "llama, linear": (
        lambda: llama(rope_parameters=PLAIN | {"rope_type": "linear", "factor": 2.0}),
        replace(rope=RopeConfig(10_000.0, "linear", factor=2.0)),
    ),
    "mistral": (
        lambda: transformers.MistralConfig(**THEIRS, rope_parameters=PLAIN, sliding_window=7),
        replace(window=7, layer_pattern=("sliding",)),
    ),
    "qwen2, yarn": (
        lambda: transformers.Qwen2Config(
            **THEIRS, rope_parameters=YARN, layer_types=["full_attention"] * L
        ),
        replace(qkv_bias=True, rope=RopeConfig(1000.0, "yarn", factor=4.0, original_length=16)),
    ),
    "qwen3": (
        lambda: transformers.Qwen3Config(**THEIRS, rope_parameters=PLAIN, head_dim=16),
        replace(qk_norm=True, head_dim=16),
    ),
    "gemma2": (
        lambda: transformers.Gemma2Config(
            **GEMMA_THEIRS,
            rope_parameters=PLAIN,
            layer_types=SLIDING,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
        ),
        dataclasses.replace(
            GEMMA,
            layer_pattern=("sliding", "global"),
            attention_softcap=5.0,
            final_softcap=3.0,
        ),
    ),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(
            **GEMMA_THEIRS,
            rope_parameters={
                "sliding_attention": PLAIN | {"rope_theta": 100.0},
                "full_attention": PLAIN | {"rope_type": "linear", "factor": 8.0},
            },
            layer_types=SLIDING,
        ),
        dataclasses.replace(
            GEMMA,
            layer_pattern=("sliding", "global"),
            qk_norm=True,
            local_theta=100.0,
            rope=RopeConfig(10_000.0, "linear", factor=8.0),
        ),
    ),
}

LLAMA_NAMES = {
    "embedding/table": "model.embed_tokens.weight",
    "output/table": "lm_head.weight",
    "final_norm/scale": "model.norm.weight",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
GPT2_NAMES = {
    "embedding/table": "transformer.wte.weight",
    "position_embedding/table": "transformer.wpe.weight",
    "final_norm/scale": "transformer.ln_f.weight",
    "final_norm/bias": "transformer.ln_f.bias",
    "attention_norm": "ln_1",
    "attention/output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}


def find(name, config):
    """Find their name of our parameter, and how to look at it before it is reshaped."""
    gpt2 = config.norm == "layer"
    names = GPT2_NAMES if gpt2 else dict(LLAMA_NAMES)
    if config.post_norms:
        names |= {
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    elif not gpt2:
        names |= {"mlp_norm": "post_attention_layernorm"}
    if name in names:
        return names[name], lambda x: x
    _, layer, path = name.split("/", 2)
    module, kind = path.rsplit("/", 1)
    prefix = f"transformer.h.{layer}" if gpt2 else f"model.layers.{layer}"
    suffix = "bias" if kind == "bias" else "weight"
    thirds = ("attention/query", "attention/key", "attention/value")
    if gpt2 and module in thirds:
        third = thirds.index(module)
        return f"{prefix}.attn.c_attn.{suffix}", lambda x: np.split(x, 3, axis=-1)[third]
    # Kernels of PyTorch are [out, in]; GPT-2's are [in, out].
    turned = kind == "kernel" and not gpt2
    return f"{prefix}.{names[module]}.{suffix}", lambda x: x.T if turned else x


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Their model with random weights everywhere, and ours with the same."""
    make, config = FAMILIES[request.param]
    torch.manual_seed(0)
    settings = make()
    settings._attn_implementation = "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    used = set()

    def fill(name, leaf):
        their_name, view = find(name, config)
        used.add(their_name)
        return jnp.asarray(view(tensors[their_name]).reshape(leaf.shape))

    ours = map_named(fill, LanguageModel(config, jax.random.key(0)))
    tied = {"lm_head.weight"} if config.tied else set()
    assert tensors.keys() - used == tied
    return theirs, ours


def test_logits_are_theirs(pair):
    theirs, ours = pair
    tokens = np.random.default_rng(0).integers(0, V, (2, T))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    found = ours(jnp.asarray(tokens, jnp.int32))
    assert np.std(expected) > 0.3  # they say something
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
