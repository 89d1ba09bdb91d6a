"""What a language model has come to, beside what a compressor and people make of the same text."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from genai_jax.data.fill_in_the_middle import SENTINELS
from genai_jax.data.text import TextData
from genai_jax.decoding.generate import generate
from genai_jax.decoding.loop import DecodingModel
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import prompt_tokens
from genai_jax.evaluation.compression import xz_bits_per_byte
from genai_jax.evaluation.python_syntax import share_of_lines_that_parse
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.run_directory import RunDirectory

_PROGRAMS = 32


def kept_text(path: Path, make: Callable[[], str]) -> str:
    """Read a text that was made before; where there is none, make and keep it."""
    if not path.exists():
        text = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return text
    return path.read_text(encoding="utf-8")


def describe_likelihood(loss: float, bits_per_byte: float, num_bytes: int) -> str:
    """Say how likely the held-out text was found."""
    return (
        f"held-out text: {loss:.4f} nats per token, {bits_per_byte:.3f} bits per byte "
        f"({num_bytes:,} bytes)"
    )


def describe_xz(data: TextData) -> str:
    """Say what `xz -9` makes of the held-out text."""
    xz = xz_bits_per_byte(data.validation_documents(), data.train_documents())
    return (
        f"xz -9 of it:   {xz.by_file:.3f} bits per byte file by file, {xz.one_stream:.3f} as one "
        f"stream, {xz.primed:.3f} primed with the training text"
    )


def describe_python_syntax(
    model: DecodingModel, data: TextData, sampling: SamplingConfig, *, max_tokens: int, seed: int
) -> str:
    """Say how many of the lines that a model writes are Python, beside those of the held-out text.

    Args:
        model: Trained on Python, with documents.
        data: Its text.
        sampling: How tokens are drawn.
        max_tokens: Of each of the 32 programs that are sampled.
        seed: Of the noise.
    """
    tokenizer = data.tokenizer
    # A program in one piece, of a model that also writes them with the middle last.
    signs = [token for token in map(tokenizer.find_id, SENTINELS) if token is not None]
    sampling = dataclasses.replace(sampling, forbidden=(*sampling.forbidden, *signs))
    written = generate(
        model,
        [prompt_tokens(tokenizer, "")] * _PROGRAMS,
        sampling,
        max_tokens=max_tokens,
        seed=seed,
        stop_ids=tokenizer.end_ids,
        vocab_size=tokenizer.vocab_size,
    )
    programs = (tokenizer.decode(program.tokens) for program in written)
    parsed, lines = share_of_lines_that_parse(programs)
    real, all_real = share_of_lines_that_parse(x.decode() for x in data.validation_documents())
    return (
        f"ast.parse:     accepts {parsed / max(1, lines):.0%} of {lines} sampled lines, and "
        f"{real / max(1, all_real):.0%} of the {all_real:,} held-out ones"
    )


def describe_pretraining(
    run: RunDirectory,
    data: TextData,
    model: DecodingModel,
    how: SamplingConfig,
    *,
    compare_xz: bool,
    max_tokens: int,
    seed: int,
) -> str:
    """Say what a run of pre-training has come to.

    Args:
        run: Of the model.
        data: What it has learnt.
        model: Its newest parameters.
        how: Programs are drawn, where that was Python's source.
        compare_xz: Whether to say what xz makes of the same text.
        max_tokens: Of a program.
        seed: Of the programs.
    """
    last = json.loads(run.metrics.path.read_text(encoding="utf-8").splitlines()[-1])
    loss, bits = last["val/loss"], last["val/bits_per_byte"]
    lines = [describe_likelihood(loss, bits, data.validation_bytes)]
    if compare_xz:
        lines.append(describe_xz(data))
    if run.config["data"]["path"] is None and run.config["data"]["sources"] == ["stdlib"]:
        lines.append(describe_python_syntax(model, data, how, max_tokens=max_tokens, seed=seed))
    lines.append(f"loss curve:    {run.folder('plots') / 'loss.png'}")
    lines.append(f"more text:     python experiments/lm_sample.py --model {run.path}")
    return "\n".join(lines)
