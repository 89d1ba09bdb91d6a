"""What decoding says of its tokens is what the training forward says, for every kind of model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.rope import RopeConfig

BASE = TransformerConfig(
    vocab_size=37, num_layers=3, embed_dim=16, num_heads=4, max_length=64, init_std=0.3
)
GPT2 = {
    "norm": "layer",
    "norm_bias": True,
    "positions": "learned",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "activation": "gelu",
    "gated": False,
}
LLAMA2 = {"tied": False}
LLAMA3 = {"num_kv_heads": 2, "rope": RopeConfig(theta=500.0)}
MISTRAL = {"num_kv_heads": 2, "tied": False, "window": 7, "layer_pattern": ("sliding",)}
QWEN2 = {"num_kv_heads": 2, "qkv_bias": True}
QWEN3 = {"num_kv_heads": 2, "qk_norm": True, "head_dim": 8}
GEMMA2 = {
    "num_kv_heads": 2,
    "post_norms": True,
    "norm_offset": True,
    "embedding_scale": True,
    "attention_softcap": 50.0,
    "final_softcap": 30.0,
    "window": 7,
    "layer_pattern": ("sliding", "global"),
}
GEMMA3 = {
    "num_kv_heads": 1,
    "post_norms": True,
    "norm_offset": True,
    "embedding_scale": True,
    "qk_norm": True,
    "window": 5,
    "layer_pattern": ("sliding", "sliding", "global"),
    "rope": RopeConfig(theta=1000.0),
}
FAMILIES = {
    "gpt2": GPT2,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen2.5": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
}
# How the engine computes: (tokens at a time, whether the cache is of 8-bit integers).
CACHES = {"plain": (1, False), "looking ahead": (3, False), "8-bit": (1, True)}


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_decoding_are_those_of_the_whole_row(family, layers):
    config = dataclasses.replace(BASE, **FAMILIES[family], layers=layers)
    model = LanguageModel(config, jax.random.key(2))
    numbers = np.random.default_rng(0)
    prompts = [numbers.integers(0, 37, n).tolist() for n in (21, 2)]
    requests = [Request(prompt, SamplingConfig(0.8), 25, seed=3) for prompt in prompts]
    forward = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    # One family in both storages has all kinds of caches; the others have the plain one.
    kinds = CACHES if family in ("gemma3", "llama3") else {"plain": CACHES["plain"]}
    for kind, (width, quantized) in kinds.items():
        engine = Engine(model, chunk=8, width=width, quantized=quantized)
        for prompt, found in zip(prompts, engine.run(requests), strict=True):
            row = np.zeros((1, 64), np.int32)  # causal: what follows is not seen
            text = [*prompt, *found.tokens.tolist()]
            row[0, : len(text)] = text
            whole = np.asarray(forward(model, jnp.asarray(row)))[0]
            expected = whole[np.arange(len(prompt) - 1, len(text) - 1), found.tokens]
            error = np.abs(found.log_probs - expected).max()
            # Rounding keys and values to 127 steps shows; to anything coarser it would show more.
            assert error < (0.1 if quantized else 2e-5), kind
            assert not quantized or error > 1e-4
