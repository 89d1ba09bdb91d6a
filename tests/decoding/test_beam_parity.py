"""Beam search beside Hugging Face's, on the same random models."""

import os

import numpy as np
import pytest

from genai_jax.decoding.beam import beam_search
from genai_jax.interop.pretrained import PretrainedFolder

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import torch
import transformers


@pytest.mark.parametrize("seed", range(4))
def test_texts_and_scores_are_theirs(seed, tmp_path):
    torch.manual_seed(seed)
    settings = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    theirs = transformers.LlamaForCausalLM(settings).eval()
    theirs.save_pretrained(tmp_path)
    ours = PretrainedFolder(tmp_path).load()
    prompt = np.random.default_rng(seed).integers(3, 31, 7)
    for beams, stops, penalty in ((2, [2], 1.0), (4, [2, 5, 9], 1.0), (5, [2, 5, 9, 11], 2.0)):
        with torch.no_grad():
            expected = theirs.generate(
                torch.from_numpy(prompt)[None],
                attention_mask=torch.ones((1, 7), dtype=torch.long),
                num_beams=beams,
                num_return_sequences=beams,
                do_sample=False,
                max_new_tokens=12,
                length_penalty=penalty,
                eos_token_id=stops,
                early_stopping=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        found = beam_search(
            ours, prompt, beams=beams, max_tokens=12, stop_ids=stops, length_penalty=penalty
        )
        scores = expected.sequences_scores.numpy()
        np.testing.assert_allclose([x.score for x in found], scores, atol=1e-4)
        for text, whole in zip(found, expected.sequences.numpy(), strict=True):
            np.testing.assert_array_equal(text.tokens, whole[7 : 7 + len(text.tokens)])
            assert (whole[7 + len(text.tokens) :] == 2).all()  # padding
