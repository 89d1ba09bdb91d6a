"""The server as its users start it: a process of its own, ended by a signal."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import lm_serve
from genai_jax.data.chat_templates import ChatTemplate
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.evaluation.text_runs import TextModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.serving.app import bind

ROOT = Path(__file__).resolve().parent.parent
SHAPE = TransformerConfig(vocab_size=257, num_layers=1, embed_dim=8, num_heads=1, max_length=64)


def found(chat=None):
    model = LanguageModel(SHAPE, jax.random.key(0))
    return TextModel(model, ByteTokenizer(), "tiny, step 1", chat=chat)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "`port` must be from 0 to 65535; got 70000."),
        (["--seconds", "0"], "`seconds` must be above 0; got 0.0."),
        (["--requests", "-1"], "`requests` must be above 0; got -1."),
        (["--model", "nowhere", "--port", "0"], "nowhere"),
    ],
)
def test_what_cannot_be_served_is_said(run, flags, said):
    code, out, err = run(lm_serve, *flags)
    assert code == 2 and not out
    assert said in " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(run):
    bound = bind("127.0.0.1", 0)
    bound.listen()
    code, _, err = run(lm_serve, "--model", "nowhere", "--port", str(bound.getsockname()[1]))
    bound.close()
    assert code == 2 and "in use" in err and "nowhere" not in err


def test_fingerprints_tell_what_changes_texts():
    def fingerprint(**options):
        config = lm_serve.ServeConfig(model="runs/tiny", rows=2, **options)
        service = lm_serve.make_service(config, found())
        service.worker.close()
        service.worker.join()
        assert service.served.name == options.get("name", "tiny")
        return service.served.fingerprint

    assert fingerprint() == fingerprint(name="other", requests=3) != fingerprint(context=32)


def test_a_template_that_cannot_be_rendered_is_said_at_the_start(capsys):
    lm_serve.check_chat(found())
    assert "no chat template" in capsys.readouterr().err
    lm_serve.check_chat(found(ChatTemplate("{{ messages[0].content }}")))
    assert capsys.readouterr().err == ""
    lm_serve.check_chat(found(ChatTemplate("{{ raise_exception('never') }}")))
    assert "WARNING" in capsys.readouterr().err


# The model itself is not what is on trial here: the process gets one that was not trained.
SCRIPT = """
import signal
import sys
from experiments import lm_serve
from genai_jax.data.chat_templates import ChatTemplate
from tests.test_lm_serve import found
chat = ChatTemplate("{{ messages[0].role }}: {{ messages[0].content }} <|endoftext|>")
# Who runs the tests in the background ignores it, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
lm_serve.load_text_model = lambda folder, sigma_rel: found(chat if folder == "talks" else None)
sys.exit(lm_serve.main())
"""


@pytest.mark.parametrize(
    ("by", "code", "model"),
    [(signal.SIGINT, 130, "talks"), (signal.SIGTERM, -signal.SIGTERM, "goes-on")],
)
def test_a_process_serves_until_a_signal(by, code, model):
    command = [sys.executable, "-c", SCRIPT, "--model", model, "--port", "0", "--rows", "2"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        shown = rf"{model} at http://127\.0\.0\.1:(\d+)/v1, 2 rows of 64 tokens; Ctrl-C ends\n"
        port = int(re.fullmatch(shown, first)[1])
        # What it says to try is what works.
        path, body = re.match(r"curl http://[^/]+(\S+) -H .* -d '(.*)'$", second).groups()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = json.load(connection.getresponse())
        assert answer["object"] == ("chat.completion" if model == "talks" else "text_completion")
        # "user: Hello ", and the end of a text as the one token that it is.
        assert answer["usage"]["prompt_tokens"] == (13 if model == "talks" else 5)
        assert answer["usage"]["total_tokens"] <= 64
        process.send_signal(by)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    connection.close()
    assert process.returncode == code
    assert out == "" and "Traceback" not in err
