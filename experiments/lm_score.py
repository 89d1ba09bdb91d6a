"""Says how likely a language model finds texts: nats, bits per byte, perplexity, every token."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from genai_jax.command_line import parse_command_line
from genai_jax.data.corpora import read_documents
from genai_jax.data.tokenizers import Tokenizer
from genai_jax.evaluation.scoring import TextScore, score_texts
from genai_jax.evaluation.text_runs import load_text_model
from genai_jax.training.run_directory import RunError

_CHARACTERS_AT_A_TIME = 1 << 16


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What to score.

    Attributes:
        model: Folder of a run (the `--workdir` of its training), or of a model of Hugging Face's.
        text: Texts to score.
        files: Files to score: each is a text or, in JSON lines named *.jsonl, each line is; also
            .gz. Where there are neither files nor texts, each line of stdin is a text.
        json_lines: Whether the lines of stdin are JSON objects, as those of *.jsonl.
        field: Name of the text in JSON lines.
        prompt: What every text follows; only the text itself is scored. For choices, compare
            their sums of log-probabilities, or sums over lengths.
        per_token: Whether to print every token with its log-probability in nats and its rank (1
            is the likeliest).
        json: Whether to print JSON, an object a line.
        length: Tokens that the model reads at once; 0 is all that it can.
        stride: Of texts that are longer: tokens from the end of one window to the end of the next.
            Windows overlap by what is left of the length, and each token is scored once; the
            smaller, the more each is given, and the slower. 0 is half of the length.
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    model: str = "runs/quickstart"
    text: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    json_lines: bool = False
    field: str = "text"
    prompt: str = ""
    per_token: bool = False
    json: bool = False
    length: int = 0
    stride: int = 0
    ema_sigma_rel: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("length", "stride"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0; got {getattr(self, name)}.")


class Text(NamedTuple):
    """A text, and where it is from."""

    name: str
    text: str


def read_texts(config: ScoreConfig) -> Iterator[Text]:
    """Read what is to be scored."""
    for number, text in enumerate(config.text, start=1):
        yield _decoded(f"text {number}", text.encode("utf-8", "surrogateescape"))
    for path in config.files:
        for name, content in read_documents(f"files:{path}", field=config.field):
            yield _decoded(name, content)
    if not config.text and not config.files:
        if sys.stdin.isatty():
            raise ValueError("there must be a text to score; got none. Give --text or --files.")
        yield from _read_lines(config)


def _read_lines(config: ScoreConfig) -> Iterator[Text]:
    """Read stdin; lines that are empty are no texts."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        name, content = f"stdin:{number}", line.rstrip(b"\r\n")
        if not content.strip():
            continue
        found: Any = _decoded(name, content).text
        if config.json_lines:
            try:
                record = json.loads(found)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}: a line must be a JSON object; {error}.") from error
            found = record.get(config.field) if isinstance(record, dict) else None
            if not isinstance(found, str):
                raise ValueError(f"{name}: an object must have a text as `{config.field}`.")
        yield Text(name, found)


def _decoded(name: str, content: bytes) -> Text:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be UTF-8; byte {error.start} is {content[error.start]:#04x}. Convert it: "
            "iconv -t utf-8."
        ) from error
    if not text:
        raise ValueError(f"a text must hold a character; {name} is empty. Leave it out.")
    return Text(name, text)


def _batches(texts: Iterator[Text]) -> Iterator[list[Text]]:
    """Take as many texts at a time as are worth it, so that any number of them can be read."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= _CHARACTERS_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def as_json(text: Text, score: TextScore, tokenizer: Tokenizer, config: ScoreConfig) -> str:
    """Write all that is known of a text; what is not finite is null."""
    values: dict[str, Any] = {
        "name": text.name,
        "tokens": len(score.tokens),
        "bytes": score.num_bytes,
        "log_prob": score.log_prob,
        "log_prob_per_token": score.log_prob / len(score.tokens),
        "log_prob_per_byte": score.log_prob / max(1, score.num_bytes),
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
    }
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    if config.per_token:
        rows = zip(
            score.tokens.tolist(), score.log_probs.tolist(), score.ranks.tolist(), strict=True
        )
        values["per_token"] = [
            {"id": token, "text": _shown(tokenizer, token), "log_prob": log_prob, "rank": rank}
            for token, log_prob, rank in rows
        ]
    return json.dumps(values, ensure_ascii=False)


def as_lines(text: Text, score: TextScore, tokenizer: Tokenizer, config: ScoreConfig) -> str:
    """Describe a text for human eyes."""
    count = len(score.tokens)
    line = (
        f"{text.name}: {count:,} token{'s' * (count != 1)}, {-score.log_prob:.4f} nats, "
        f"{score.bits_per_byte:.4f} bits per byte, perplexity {score.perplexity:.4g}"
    )
    if config.prompt:
        line += (
            f"; log-probability {score.log_prob:.4f}, {score.log_prob / count:.4f} a token, "
            f"{score.log_prob / max(1, score.num_bytes):.4f} a byte"
        )
    lines = [line]
    if config.per_token:
        lines.append(f"{'nats':>10} {'rank':>7}  token")
        rows = zip(
            score.tokens.tolist(), score.log_probs.tolist(), score.ranks.tolist(), strict=True
        )
        lines += [f"{x:10.4f} {rank:7}  {_shown(tokenizer, i)!r}" for i, x, rank in rows]
    return "\n".join(lines)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; parts of a character are escaped."""
    return tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")


def score_all(config: ScoreConfig) -> None:
    """Score text after text."""
    found = load_text_model(config.model, config.ema_sigma_rel)
    print(found.about, file=sys.stderr)
    describe = as_json if config.json else as_lines
    total = 0
    for batch in _batches(read_texts(config)):
        scores = score_texts(
            found.model,
            found.tokenizer,
            [text.text for text in batch],
            prompt=config.prompt,
            length=config.length or None,
            stride=config.stride or None,
        )
        for text, score in zip(batch, scores, strict=True):
            print(describe(text, score, found.tokenizer, config), flush=True)
        total += len(batch)
    if not total:
        raise ValueError("there must be a text to score; stdin has none. Give --text or --files.")


def main() -> int:
    """Read the command line and score."""
    presets = {"score": ("texts", ScoreConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        score_all(config)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        said = str(error).replace("--data.field", "--field")  # as the data loaders call it
        print(f"ERROR: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
