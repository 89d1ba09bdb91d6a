"""Writing as its users do it: with a folder of Hugging Face's that can chat and fill in."""

import io
import json
import re
import sys

import jax
import pytest
import sentencepiece

from experiments import lm_sample
from genai_jax.data.fill_in_the_middle import SENTINELS
from genai_jax.interop.export import save_pretrained
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=320, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=128
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}"


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
        control_symbols=["<|im_start|>", *SENTINELS],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def write(run, folder, monkeypatch):
    def call(*flags, stdin="", tokens=6):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        return run(lm_sample, "--model", str(folder), "--max-tokens", str(tokens), *flags)

    return call


def test_texts_are_held_to_a_schema_or_an_expression(write, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["age"],
                "additionalProperties": False,
            }
        )
    )
    code, out, _ = write("--json-schema", str(schema), "--samples", "3", tokens=20)
    assert code == 0
    for line in out.splitlines():
        assert 0 <= json.loads(line)["age"] <= 99
    code, out, _ = write("--regex", "(yes|no), [0-9]{2}", tokens=8)
    assert code == 0 and re.fullmatch("(yes|no), [0-9]{2}\n", out)
    code, _, told = write("--regex", "[0-9]{9}")
    assert code == 2 and "the shortest has 9 tokens, and 6 may be drawn" in told
    schema.write_text("{")
    assert write("--json-schema", str(schema))[0] == 2


def test_a_chat_goes_line_by_line(write):
    code, out, _ = write("--chat", "--system", "Be", stdin="to be\n\nor not\n", tokens=4)
    assert code == 0 and len(out.splitlines()) >= 2
    first = write("--chat", "--system", "Be", stdin="to be\n", tokens=4)[1]
    assert out.startswith(first.rstrip("\n"))
    assert write("--chat", "--system", "Be", "--prompt", "to be", tokens=4)[1] == first
    code, _, told = write("--chat", stdin="be " * 300 + "\nto be\n", tokens=4)
    assert code == 0 and "must fit into a context of 128 tokens" in told
    code, _, told = write("--chat", stdin="to be or not to be\n" * 9, tokens=20)
    assert code == 0 and "messages are forgotten by now" in told


def test_what_is_between_two_texts_is_filled_in(write):
    code, out, _ = write("--prompt", "To be", "--suffix", " to be")
    assert code == 0 and out.startswith("To be") and out.endswith(" to be\n")


def test_beams_are_printed_with_their_scores(write):
    code, out, _ = write("--prompt", "To be", "--beams", "3")
    scores = [float(x) for x in re.findall(r"^\[(-[0-9.]+)\] To be", out, re.MULTILINE)]
    assert code == 0 and len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_looking_ahead_and_8_bits_are_asked_for_by_a_flag(write):
    plain = write("--prompt", "be be be", "--temperature", "0", tokens=20)
    ahead = write("--prompt", "be be be", "--temperature", "0", "--look-ahead", "3", tokens=20)
    assert plain[1] == ahead[1]
    assert write("--prompt", "be", "--weights", "int8", "--cache", "int8")[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--json-schema", "a", "--regex", "b"), "`json_schema` or `regex`, not to both"),
        (("--system", "x"), "--system has no meaning for what is no chat"),
        (("--context", "64"), "--context has no meaning for what is no chat"),
        (("--chat", "--samples", "2"), "--samples has no meaning for a chat"),
        (("--beams", "2", "--temperature", "1"), "--sampling has no meaning for a beam search"),
        (("--sinks", "2"), "--sinks has no meaning for an overflow that does not roll"),
        (("--chat", "--beams", "2"), "one of chat, suffix, beams"),
        (("--beams", "2", "--regex", "a"), "--regex has no meaning for a beam search"),
        (("--samples", "0"), "`samples` must be at least 1"),
        (("--overflow", "error", "--prompt", "to be " * 200), "context of 128 tokens"),
        (("--look-ahead", "16"), "`look_ahead` must be from 0 to 15"),
    ],
)
def test_what_cannot_be_is_refused(write, flags, message):
    code, _, told = write(*flags)
    assert code == 2 and message in " ".join(told.replace("│", " ").split())
