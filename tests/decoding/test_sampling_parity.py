"""Every control and their order, beside the processors of transformers' `generate`."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.adjustments import Seen, adjust_logits
from genai_jax.decoding.filters import kept_tokens
from genai_jax.decoding.sampling import SamplingConfig, settings_of

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import torch
import transformers

V, LENGTH, DRAWN = 200, 30, 12

CONFIGS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 17},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.08},
    "typical_p": {"typical_p": 0.6},
    "repetition": {"repetition_penalty": 1.7},
    "bias": {"logit_bias": {3: 4.0, 190: -2.0}},
    "forbidden": {"forbidden": (5, 9, 100)},
    "least length": {"min_tokens": DRAWN + 1},
    "all": {
        "temperature": 1.4,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "logit_bias": {3: 4.0, 190: -2.0},
        "min_tokens": DRAWN + 5,
    },
}
STOPS = [7, 21]


def theirs(config, tokens, logits):
    """Apply their processors in the order of `generate`."""
    generation = transformers.GenerationConfig(
        do_sample=True,
        temperature=config.temperature,
        top_k=config.top_k or None,
        top_p=config.top_p,
        min_p=config.min_p or None,
        typical_p=config.typical_p,
        repetition_penalty=config.repetition_penalty,
        sequence_bias=[([token], value) for token, value in config.logit_bias.items()] or None,
        suppress_tokens=list(config.forbidden) or None,
        min_new_tokens=config.min_tokens or None,
        eos_token_id=STOPS,
        pad_token_id=0,
    )
    small = transformers.GPT2Config(vocab_size=V, n_embd=8, n_layer=1, n_head=1, n_positions=64)
    model = transformers.GPT2LMHeadModel(small)
    model._prepare_special_tokens(generation, device=torch.device("cpu"))
    processors = model._get_logits_processor(
        generation, input_ids_seq_length=LENGTH - DRAWN, device="cpu"
    )
    return processors(torch.from_numpy(tokens), torch.from_numpy(logits)).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_left_to_draw_from_is_theirs(name):
    config = SamplingConfig(**CONFIGS[name])
    numbers = np.random.default_rng(0)
    rows = 8
    tokens = numbers.integers(0, V, (rows, LENGTH))
    logits = (3 * numbers.normal(size=(rows, V))).astype(np.float32)
    expected = theirs(config, tokens, logits.copy())

    settings = settings_of([config] * rows, V)
    stands = np.zeros((rows, V), bool)
    drawn = np.zeros((rows, V), np.int32)
    for row in range(rows):
        stands[row, tokens[row, : LENGTH - DRAWN]] = True
        np.add.at(drawn[row], tokens[row, LENGTH - DRAWN :], 1)
    seen = Seen(stands, drawn, np.full(rows, DRAWN, np.int32))
    stops = np.array([[*STOPS, -1]] * rows, np.int32)
    adjusted = jax.jit(adjust_logits)(jnp.asarray(logits), settings.adjustments, seen, stops)
    scaled = adjusted / config.temperature
    kept = np.asarray(jax.jit(kept_tokens)(scaled, settings.filters))
    found = np.where(kept, scaled, -np.inf)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-5, atol=1e-5)
    if name != "plain":
        assert not np.array_equal(expected, logits)
