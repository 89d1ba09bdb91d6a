"""What is said of a language model in the end."""

import jax
import pytest

from genai_jax.data.text import TextConfig, load_text
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.evaluation import text_report
from genai_jax.evaluation.compression import xz_bits_per_byte
from genai_jax.evaluation.text_report import (
    describe_likelihood,
    describe_python_syntax,
    describe_xz,
    kept_text,
)
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"def f_{i}(x):\n    return x + {i}\n\nthis is not\n" * 9)
    config = TextConfig(path=f"{folder}/*.txt", tokenizer="bytes", cache_dir=str(folder / "cache"))
    return load_text(config, length=16, seed=0)


def test_a_text_is_made_once(tmp_path):
    path, made = tmp_path / "samples" / "report.txt", []

    def make():
        made.append("text")
        return made[-1]

    assert [kept_text(path, make) for _ in range(2)] == ["text", "text"]
    assert made == ["text"]


def test_likelihood_is_given_with_its_units():
    text = describe_likelihood(1.23456, 0.98765, 1_234_567)
    assert text == "held-out text: 1.2346 nats per token, 0.988 bits per byte (1,234,567 bytes)"


def test_xz_is_that_of_the_held_out_text(data):
    xz = xz_bits_per_byte(data.validation_documents(), data.train_documents())
    text = describe_xz(data)
    for value in xz:
        assert f"{value:.3f}" in text


@pytest.fixture(scope="module")
def model(data):
    shape = TransformerConfig(
        vocab_size=data.tokenizer.vocab_size,
        num_layers=1,
        embed_dim=8,
        num_heads=1,
        mlp_dim=8,
        max_length=16,
    )
    return LanguageModel(shape, jax.random.key(0))


def test_syntax_of_samples_stands_beside_that_of_people(model, data):
    text = describe_python_syntax(model, data, SamplingConfig(1.0), max_tokens=8, seed=0)
    held_out = b"".join(data.validation_documents()).count(b"this")
    # Of four lines one is blank and one is no Python.
    assert f"67% of the {3 * held_out:,} held-out ones" in text


def test_samples_are_programs_in_one_piece(model, data, monkeypatch):
    """Of a model that has learnt to fill in, too, whose documents may have the middle last."""
    asked = []

    def generate(model, prompts, sampling, **options):
        asked.append(sampling)
        return []

    monkeypatch.setattr(text_report, "generate", generate)
    monkeypatch.setattr(data.tokenizer, "special_ids", {"<|fim_prefix|>": 7, "<|fim_middle|>": 5})
    for forbidden in ((), (3,)):
        sampling = SamplingConfig(1.0, forbidden=forbidden)
        describe_python_syntax(model, data, sampling, max_tokens=8, seed=0)
    assert [sampling.forbidden for sampling in asked] == [(7, 5), (3, 7, 5)]
