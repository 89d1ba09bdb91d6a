"""Scoring of texts as its users run it: with a folder of Hugging Face's, and the run it becomes."""

import io
import json
import math
import sys

import jax
import numpy as np
import pytest
import sentencepiece

from experiments import convert_checkpoint, lm_score
from genai_jax.interop.export import save_pretrained
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=320, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, max_length=32
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, LanguageModel(SHAPE, jax.random.key(0)))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["To be, or not to be, that is the question"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return folder


@pytest.fixture
def score(run, folder, monkeypatch):
    def call(*flags, stdin=b"", model=folder):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return run(lm_score, "--model", str(model), *flags)

    return call


def records(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_line_says_how_likely_a_text_is(score):
    code, out, err = score("--text", "To be,", "or not")
    assert code == 0 and "llama" in err
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["text 1", "text 2"]
    assert "nats" in lines[0] and "bits per byte" in lines[0] and "perplexity" in lines[0]
    code, out, _ = score("--text", "To be,", "or not", "--json")
    for line, record in zip(lines, records(out), strict=True):
        nats = -record["log_prob"]
        assert f"{record['tokens']} token" in line and f"{nats:.4f} nats" in line
        assert record["bytes"] == 6
        assert record["bits_per_byte"] == pytest.approx(nats / math.log(2) / 6)
        assert record["perplexity"] == pytest.approx(math.exp(nats / record["tokens"]))


def test_tokens_add_up_to_the_text(score):
    text = "Not to be 你"
    code, out, _ = score("--text", text, "--per-token", "--json")
    (record,) = records(out)
    tokens = record["per_token"]
    assert code == 0 and len(tokens) == record["tokens"]
    assert sum(token["log_prob"] for token in tokens) == pytest.approx(record["log_prob"])
    assert all(1 <= token["rank"] <= 320 for token in tokens)
    shown = "".join(token["text"] for token in tokens)
    assert shown == " Not to be " + "".join(f"\\x{byte:02x}" for byte in "你".encode())
    code, out, _ = score("--text", text, "--per-token")
    rows = out.splitlines()[2:]
    assert code == 0 and len(rows) == len(tokens)
    for row, token in zip(rows, tokens, strict=True):
        log_prob, rank, shown = row.split(maxsplit=2)
        assert (log_prob, int(rank)) == (f"{token['log_prob']:.4f}", token["rank"])
        assert shown == repr(token["text"])


def test_texts_come_from_files_and_lines(score, tmp_path):
    (tmp_path / "one.txt").write_text("To be,\nor not")
    (tmp_path / "two.jsonl").write_text('{"said": "To be,"}\n\n{"said": "or not"}\n')
    flags = ("--field", "said", "--json", "--files", f"{tmp_path}/one.txt", f"{tmp_path}/two.jsonl")
    code, out, _ = score(*flags)
    assert code == 0
    one, two, three = records(out)
    assert one["name"].endswith("one.txt") and one["bytes"] == 13
    assert two["name"].endswith("two.jsonl:1") and three["name"].endswith("two.jsonl:3")
    code, out, _ = score("--json", stdin=b"To be,\n\nor not\r\n")
    assert code == 0
    assert [record["name"] for record in records(out)] == ["stdin:1", "stdin:3"]
    assert records(out)[0]["log_prob"] == pytest.approx(two["log_prob"], abs=1e-4)
    lines = b'{"said": "To be,", "n": 1}\n'
    code, out, _ = score("--json", "--json-lines", "--field", "said", stdin=lines)
    assert code == 0 and records(out)[0]["bytes"] == 6


def test_a_text_that_follows_a_prompt(score):
    whole, part, choices = (
        records(score("--json", *flags)[1])
        for flags in (
            ("--text", "To be, or not"),
            ("--text", "To be,"),
            ("--text", " or not", " the question", "--prompt", "To be,"),
        )
    )
    difference = whole[0]["log_prob"] - part[0]["log_prob"]
    assert choices[0]["log_prob"] == pytest.approx(difference, abs=1e-4)
    assert choices[0]["bytes"] == 7
    assert choices[1]["log_prob_per_byte"] == pytest.approx(choices[1]["log_prob"] / 13)
    code, out, _ = score("--text", " or not", "--prompt", "To be,")
    assert code == 0 and f"log-probability {choices[0]['log_prob']:.4f}, " in out


def test_a_long_text_is_read_in_windows(score):
    text = "To be, or not to be, that is the question " * 20
    results = {}
    for stride in ("0", "1", "16"):
        code, out, _ = score("--json", "--text", text, "--stride", stride, "--per-token")
        assert code == 0
        (results[stride],) = records(out)
    counts = {record["tokens"] for record in results.values()}
    assert len(counts) == 1 and counts.pop() > 64
    first = [[x["log_prob"] for x in record["per_token"][:32]] for record in results.values()]
    np.testing.assert_allclose(first[0], first[1], atol=1e-4)
    assert results["1"]["log_prob"] != results["16"]["log_prob"]


def test_many_texts_are_scored_as_they_are_read(score, monkeypatch):
    code, together, _ = score("--json", "--text", *["To be,", "or", "not"] * 3)
    monkeypatch.setattr(lm_score, "_CHARACTERS_AT_A_TIME", 7)
    code, apart, _ = score("--json", "--text", *["To be,", "or", "not"] * 3)
    assert code == 0
    for one, other in zip(records(together), records(apart), strict=True):
        assert one["log_prob"] == pytest.approx(other["log_prob"], abs=1e-4)
        assert (one["name"], one["tokens"]) == (other["name"], other["tokens"])


def test_a_run_is_scored_as_the_folder_that_it_was(score, run, folder, tmp_path):
    flags = ("--model", str(folder), "--out", str(tmp_path / "run"))
    assert run(convert_checkpoint, *flags)[0] == 0
    assert score("--text", "To be")[1] == score("--text", "To be", model=tmp_path / "run")[1]


def test_what_cannot_be_is_refused(score, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "list.jsonl").write_text('{"said": "x"}\n')
    wrong = {
        "there must be a text to score; stdin has none": (),
        "a text must hold a character; text 2 is empty": ("--text", "x", ""),
        "empty.txt is empty": ("--files", f"{tmp_path}/empty.txt"),
        "latin.txt must be UTF-8; byte 2 is 0xf6": ("--files", f"{tmp_path}/latin.txt"),
        "nowhere.txt matches no file": ("--files", f"{tmp_path}/nowhere.txt"),
        "Choose one with --field": ("--files", f"{tmp_path}/list.jsonl"),
        "`stride` must be from 1 to 31; got 99": ("--text", "x", "--stride", "99"),
        "the model's context, 32; got 33": ("--text", "x", "--length", "33"),
    }
    for match, flags in wrong.items():
        code, _, err = score(*flags)
        assert code == 2 and "ERROR: " in err and match in err, err
    for line in (b"\xff\n", b"{}\n", b"[", b"[" * 100_000):
        code, _, err = score("--json-lines", stdin=line)
        assert code == 2 and "ERROR: stdin:1" in err
    code, _, err = score("--text", "x", model=tmp_path / "nothing")
    assert code == 2 and err.startswith("ERROR")
    with pytest.raises(ValueError, match="`stride` must be at least 0; got -1"):
        lm_score.ScoreConfig(stride=-1)
