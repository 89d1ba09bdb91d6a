"""Gemma 3 that can see, from transformers: its language model says what theirs says."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.interop.export import save_pretrained
from genai_jax.interop.pretrained import PretrainedFolder

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import torch
import transformers

TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
EYES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_what_it_says_without_an_image_is_theirs(tmp_path):
    torch.manual_seed(0)
    settings = transformers.Gemma3Config(
        text_config=TEXT,
        vision_config=EYES,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=58,
        eoi_token_index=59,
    )
    settings._attn_implementation = "eager"
    theirs = transformers.Gemma3ForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "whole")
    source = PretrainedFolder(tmp_path / "whole")
    ours = source.load()
    tokens = np.random.default_rng(0).integers(0, 50, (2, 40))
    expected = logits_of(theirs, tokens)
    found = jax.jit(lambda model, x: model(x))(ours, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    save_pretrained(tmp_path / "text", ours, origin=source.origin)
    alone = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", attn_implementation="eager"
    )
    assert type(alone) is transformers.Gemma3ForCausalLM
    np.testing.assert_allclose(logits_of(alone.eval(), tokens), expected, atol=1e-6)
