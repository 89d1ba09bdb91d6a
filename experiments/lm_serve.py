"""Answers over HTTP with a language model, in the protocol of OpenAI's API."""

import contextlib
import dataclasses
import functools
import json
import shlex
import sys
import time
from pathlib import Path

import jax

import genai_jax
from genai_jax.command_line import parse_command_line
from genai_jax.constraints.languages import compile_json_schema, compile_regex
from genai_jax.data.chat_templates import ChatTemplateError
from genai_jax.data.tokenizers import digest_of
from genai_jax.decoding.engine import Engine
from genai_jax.evaluation.text_runs import TextModel, load_text_model
from genai_jax.serving.app import bind, make_server, url_of
from genai_jax.serving.asked import Limits, Served
from genai_jax.serving.exchange import Service
from genai_jax.serving.worker import Worker
from genai_jax.training.run_directory import RunError


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What to serve, and to whom.

    Attributes:
        model: Folder of a run (the `--workdir` of its training), or of a model of Hugging Face's.
        name: By which clients ask for it; empty is the name of the folder.
        host: Address to listen at; at 127.0.0.1 only this machine can ask, at 0.0.0.0 everyone can.
        port: To listen at; 0 takes any that is free.
        api_key: Which clients must send as a bearer token; empty asks for none.
        rows: Texts that are written at a time, at least 2; others wait.
        context: Most tokens of a prompt and what follows it; 0 is the model's own. Caches take
            memory for rows × context.
        width: Tokens of a row that are read at a time; above 1, what may follow is guessed from
            the text so far, and read in the same step. Texts are the same.
        prefixes: Prompts whose caches are kept, so that others that begin alike are read from
            where they differ.
        quantized: Whether keys and values are kept as 8-bit integers.
        requests: Most requests under way, those that wait included; others are sent away (429).
        seconds: Within which a text is written; after that it ends with what it has.
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    model: str = "runs/quickstart"
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    rows: int = 4
    context: int = 0
    width: int = 1
    prefixes: int = 2
    quantized: bool = False
    requests: int = 64
    seconds: float = 600.0
    ema_sigma_rel: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"`port` must be from 0 to 65535; got {self.port}.")
        if not self.api_key.isascii():
            raise ValueError("`api_key` must be ASCII, to be sent in a header.")
        Limits(requests=self.requests, seconds=self.seconds)


def make_service(config: ServeConfig, found: TextModel) -> Service:
    """Put a model and an engine together, compile, and begin to work."""
    make_engine = functools.partial(
        Engine,
        found.model,
        rows=config.rows,
        context=config.context,
        vocab_size=found.tokenizer.vocab_size,
        width=config.width,
        prefixes=config.prefixes,
        quantized=config.quantized,
    )
    worker = Worker(make_engine, found.tokenizer)
    numbers = (config.rows, config.context, config.width, config.quantized)
    versions = (genai_jax.__version__, jax.__version__, jax.default_backend())
    served = Served(
        name=config.name or Path(config.model).resolve().name,
        tokenizer=found.tokenizer,
        vocab_size=found.tokenizer.vocab_size,
        context=config.context or found.model.config.max_length,
        chat=found.chat,
        compile_regex=lambda pattern: compile_regex(pattern, found.tokenizer),
        compile_schema=lambda schema: compile_json_schema(schema, found.tokenizer),
        fingerprint=f"fp_{digest_of(found.about, found.tokenizer.digest, numbers, versions)[:12]}",
        created=int(time.time()),
    )
    worker.warm_up()
    worker.start()
    limits = Limits(requests=config.requests, seconds=config.seconds)
    return Service(served, worker, limits, config.api_key)


def describe(service: Service, url: str, config: ServeConfig) -> None:
    """Print where it is, and how to ask it something."""
    served = service.served
    body = {"model": served.name, "prompt": "def ", "max_tokens": 40}
    path = "/v1/completions"
    if served.chat is not None:
        path = "/v1/chat/completions"
        body = {"model": served.name, "messages": [{"role": "user", "content": "Hello"}]}
    key = " -H 'Authorization: Bearer KEY'" if config.api_key else ""
    print(f"{served.name} at {url}/v1, {config.rows} rows of {served.context} tokens; Ctrl-C ends")
    data = shlex.quote(json.dumps(body))
    print(f"curl {url}{path}{key} -H 'Content-Type: application/json' -d {data}", flush=True)


def check_chat(found: TextModel) -> None:
    """Try the chat template, if there is one: what it lacks should be said now.

    Raises:
        ModuleNotFoundError: If the package that renders it is not installed.
    """
    if found.chat is None:
        print("no chat template: /v1/chat/completions is refused", file=sys.stderr)
        return
    try:
        found.chat.encode(found.tokenizer, [{"role": "user", "content": "Hello"}])
    except ChatTemplateError as error:
        print(f"WARNING: {error}", file=sys.stderr)


def main() -> int:
    """Read the command line and serve until told to end."""
    presets = {"serve": ("a model", ServeConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        with contextlib.closing(bind(config.host, config.port)) as bound:
            url = url_of(bound)
            found = load_text_model(config.model, config.ema_sigma_rel)
            print(found.about, file=sys.stderr)
            check_chat(found)
            service = make_service(config, found)
            ready = functools.partial(describe, service, url, config)
            make_server(service, ready).run(sockets=[bound])
    except KeyboardInterrupt:
        return 130
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
