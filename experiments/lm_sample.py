"""Writes text with a language model, or chats: a run of ours, or a folder of Hugging Face's."""

import dataclasses
import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Literal

import tyro

from genai_jax.command_line import parse_command_line
from genai_jax.constraints.languages import compile_json_schema, compile_regex
from genai_jax.decoding.beam import beam_search
from genai_jax.decoding.conversation import Conversation
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.generate import fitting_engine
from genai_jax.decoding.infilling import infill_end_ids, infill_prompt
from genai_jax.decoding.requests import Overflow, Request
from genai_jax.decoding.results import Generated
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import prompt_tokens, stream_request
from genai_jax.evaluation.text_runs import TextModel, load_text_model
from genai_jax.nn.linear import quantize_linears
from genai_jax.training.run_directory import RunError


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to write.

    Attributes:
        model: Folder of a run (the `--workdir` of its training), or of a model of Hugging Face's
            (config.json, safetensors, tokenizer.json or tokenizer.model).
        prompt: What the text begins with; it is printed too. In a chat: what to say; without it
            the terminal is read, until Ctrl-D.
        suffix: What the text ends with: the model, if it was trained to, fills in what is between.
        chat: Whether to chat, by the chat template of the model.
        system: What a chat begins with, before all that is said.
        json_schema: File with a JSON Schema that the text must be valid by; it then is, whatever
            the model.
        regex: Regular expression that the text must match from end to end.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to write; the model's context may end before.
        stop: Texts before which to end; none of them is printed.
        seed: Of the noise: the same seed gives the same text.
        samples: Texts to write, with the seeds `seed`, `seed + 1`, ...
        beams: Texts side by side in a search for the likeliest; 0 draws instead.
        overflow: What happens where prompt and text exceed the context. truncate: a prompt that
            leaves no room loses its oldest tokens. stop: text ends where the context is full.
            roll: the oldest tokens are dropped whenever it is full, but for `sinks`. error: it is
            refused.
        sinks: Oldest tokens that roll keeps.
        context: Most tokens of a chat, which bounds its memory; the oldest messages are left out
            beyond. 0 is the model's own.
        look_ahead: Tokens that are guessed from the text so far and read at once, up to 15; the
            text is the same, and comes faster where it repeats itself.
        weights: own: as they come. int8 keeps kernels as 8-bit integers: a quarter of their
            memory.
        cache: own: in the type of the activations. int8 keeps keys and values as 8-bit integers: a
            quarter of their memory.
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    model: str = "runs/quickstart"
    prompt: str = ""
    suffix: str = ""
    chat: bool = False
    system: str = ""
    json_schema: str = ""
    regex: str = ""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = dataclasses.field(
        default_factory=lambda: SamplingConfig(temperature=0.8, top_p=0.95)
    )
    max_tokens: int = 200
    stop: tuple[str, ...] = ()
    seed: int = 0
    samples: int = 1
    beams: int = 0
    overflow: Overflow = "truncate"
    sinks: int = 4
    context: int = 4096
    look_ahead: int = 0
    weights: Literal["own", "int8"] = "own"
    cache: Literal["own", "int8"] = "own"
    ema_sigma_rel: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning, or would be ignored."""
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.look_ahead <= 15:
            raise ValueError(f"`look_ahead` must be from 0 to 15; got {self.look_ahead}.")
        if self.json_schema and self.regex:
            raise ValueError("a text can be held to `json_schema` or `regex`, not to both.")
        alone = {"chat": self.chat, "suffix": bool(self.suffix), "beams": self.beams > 0}
        together = [name for name, given in alone.items() if given]
        if len(together) > 1:
            raise ValueError(f"one of {', '.join(alone)} can be asked for; got {together}.")
        drawing = ("sampling", "seed", "look_ahead", "cache", "overflow", "json_schema", "regex")
        if self.beams:
            self._refuse("a beam search", *drawing, "stop", "samples")
        if self.chat:
            self._refuse("a chat", "samples")
        else:
            self._refuse("what is no chat", "system", "context")
        if self.suffix:
            self._refuse("filling in", "overflow")
        if self.overflow != "roll":
            self._refuse("an overflow that does not roll", "sinks")

    def _refuse(self, what: str, *names: str) -> None:
        """Refuse options that would be ignored."""
        usual = {field.name: field for field in dataclasses.fields(self)}
        for name in names:
            field = usual[name]
            made = field.default_factory
            plain = field.default if made is dataclasses.MISSING else made()
            if getattr(self, name) != plain:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} has no meaning for {what}. Leave it out.")


def make_request(config: SampleConfig, found: TextModel) -> Request:
    """Say what is asked of the model, but for the prompt."""
    automaton = None
    if config.regex:
        automaton = compile_regex(config.regex, found.tokenizer)
    elif config.json_schema:
        text = Path(config.json_schema).read_text(encoding="utf-8")
        automaton = compile_json_schema(json.loads(text), found.tokenizer)
    return Request(
        (),
        config.sampling,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stop_ids=found.tokenizer.end_ids,
        overflow=config.overflow,
        sinks=config.sinks,
        automaton=automaton,
    )


def write_samples(config: SampleConfig, found: TextModel) -> None:
    """Write texts that begin with the prompt."""
    request = make_request(config, found)
    if config.suffix:
        room = found.model.config.max_length - config.max_tokens
        if room < 8:
            raise ValueError(
                f"`max_tokens` must leave room in the context of {found.model.config.max_length} "
                f"tokens; got {config.max_tokens}."
            )
        prompt = infill_prompt(found.tokenizer, config.prompt, config.suffix, most_tokens=room)
        request = dataclasses.replace(request, stop_ids=infill_end_ids(found.tokenizer))
    else:
        prompt = prompt_tokens(found.tokenizer, config.prompt)
    requests = [
        dataclasses.replace(request, prompt=prompt, seed=seed)
        for seed in range(config.seed, config.seed + config.samples)
    ]
    engine = fitting_engine(
        found.model,
        requests[:1],
        vocab_size=found.tokenizer.vocab_size,
        width=1 + config.look_ahead,
        prefixes=int(config.samples > 1),
        quantized=config.cache == "int8",
    )
    for request in requests:
        print(config.prompt, end="", flush=True)
        _show(_whole(stream_request(engine, found.tokenizer, request, stop=config.stop)))
        print(config.suffix, flush=True)


def search(config: SampleConfig, found: TextModel) -> None:
    """Write the likeliest texts, with the logarithm of their probability per token."""
    prompt = prompt_tokens(found.tokenizer, config.prompt)
    texts = beam_search(
        found.model,
        prompt,
        beams=config.beams,
        max_tokens=config.max_tokens,
        stop_ids=found.tokenizer.end_ids,
        vocab_size=found.tokenizer.vocab_size,
    )
    for text in texts:
        print(f"[{text.score:.4f}] {config.prompt}{found.tokenizer.decode(text.tokens)}")


def converse(config: SampleConfig, found: TextModel) -> None:
    """Chat on the terminal: what is said is a line; Ctrl-C breaks an answer off, Ctrl-D ends."""
    longest = found.model.config.max_length
    engine = Engine(
        found.model,
        context=min(config.context or longest, longest),
        vocab_size=found.tokenizer.vocab_size,
        width=1 + config.look_ahead,
        prefixes=1,
        quantized=config.cache == "int8",
    )
    conversation = Conversation(
        engine,
        found.tokenizer,
        found.chat_template(),
        make_request(config, found),
        system=config.system,
        stop=config.stop,
    )
    for text in _said(config.prompt):
        try:
            _show(conversation.answer(text))
        except ValueError as error:
            if config.prompt:
                raise
            print(f"ERROR: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(" (broken off)", end="")
        print(flush=True)
        if conversation.forgotten:
            print(f"({conversation.forgotten} messages are forgotten by now)", file=sys.stderr)


def _said(prompt: str) -> Iterator[str]:
    """Give what is said: the prompt, or line after line of the terminal."""
    if prompt:
        yield prompt
        return
    shown = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(shown)
        except EOFError:
            return
        if text.strip():
            yield text


def _show(parts: Iterator[str]) -> None:
    """Print text as it comes."""
    for part in parts:
        print(part, end="", flush=True)


def _whole(parts: Generator[str, None, Generated]) -> Generator[str, None, None]:
    """Pass text on, and say where the model has broken off."""
    ended = yield from parts
    if ended.reason == "broken":
        raise ValueError("the model's logits are no numbers, or leave nothing to draw.")


def main() -> int:
    """Read the command line and write."""
    presets = {"sample": ("a text", SampleConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        found = load_text_model(config.model, config.ema_sigma_rel)
        print(found.about, file=sys.stderr)
        if config.weights == "int8":
            found = dataclasses.replace(found, model=quantize_linears(found.model))
        run = converse if config.chat else search if config.beams else write_samples
        run(config, found)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except BrokenPipeError:
        return 1
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
