"""Language models to write and measure with: runs of ours, and folders of Hugging Face's."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from genai_jax.data.chat_templates import ChatTemplate, load_chat_template
from genai_jax.data.pretrained_tokenizers import load_pretrained_tokenizer
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.tokenizers import Tokenizer
from genai_jax.interop.checkpoint_folder import CONFIG, INDEX, SINGLE
from genai_jax.interop.family import NOT_SHAPE
from genai_jax.interop.origin import Origin, load_origin
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import add_lora, merge_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.paths import map_named
from genai_jax.training.checkpoints import load_part
from genai_jax.training.initialise import (
    Initial,
    Source,
    digest_of_part,
    load_initial,
    newest_arrays,
)
from genai_jax.training.posthoc_ema import reconstruct
from genai_jax.training.run_directory import RunError, read_run
from genai_jax.training.saved_config import from_json
from genai_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model and what it reads and writes with.

    Attributes:
        model: Its parameters.
        tokenizer: Its tokenizer.
        about: Where it is from, in words.
        origin: Of the folder of Hugging Face's that it began as; None if it did not.
        chat: What turns conversations into what it reads: what a run was tuned with (`chat/`), or
            what came with that folder; None where there is none.
        step: Completed updates, of a run.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    about: str
    origin: Origin | None = None
    chat: ChatTemplate | None = None
    step: int = 0

    def chat_template(self) -> ChatTemplate:
        """Give its chat template.

        Raises:
            ValueError: If it has none. No other's is taken: in another form than the one that it
                was trained on, a model answers badly, and does not say so.
        """
        if self.chat is None:
            raise ValueError(
                f"a model must have a chat template to be talked with; {self.about}, has none: no "
                "chat_template.jinja, and no `chat_template` in tokenizer_config.json. Take a "
                "model that was tuned for chat, or put its template there (a run's in `chat`)."
            )
        return self.chat


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder is one of Hugging Face's, by its weights or `config.json`, and not a run."""
    if not folder:
        return False
    if any((Path(folder) / name).exists() for name in (SINGLE, INDEX)):
        return True
    try:
        said = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "model_type" in said


def load_text_model(folder: str, sigma_rel: float = 0.0) -> TextModel:
    """Load a language model with its tokenizer.

    Args:
        folder: Of a run, or one of Hugging Face's.
        sigma_rel: Length of an average to make from a run's snapshots; 0: the newest parameters
            (their average, where it keeps one).

    Raises:
        RunError: If there is no such run, or none with a checkpoint.
        ValueError: If a folder of Hugging Face's cannot be read.
    """
    if is_pretrained(folder):
        if sigma_rel:
            raise ValueError(
                f"an average can be made of a run's snapshots only; {folder} is no run. Leave out "
                "--ema-sigma-rel."
            )
        source = PretrainedFolder(folder)
        tokenizer = load_pretrained_tokenizer(Path(folder), source.config.vocab_size)
        about, chat = describe_folder(folder, source), load_chat_template(Path(folder))
        return TextModel(source.load(), tokenizer, about, source.origin, chat)
    return _load_run(Path(folder), sigma_rel)


def describe_folder(folder: str, source: PretrainedFolder) -> str:
    """Say what a folder of Hugging Face's holds."""
    count = sum(leaf.size for leaf in jax.tree.leaves(source.abstract()))
    kind = source.config.param_dtype
    return f"{folder}, {source.family.model_type}, {count:,} parameters in {kind}"


class Reading(NamedTuple):
    """What a run of a language model has beside its parameters.

    Attributes:
        path: Of the run.
        shape: Of the model.
        tokenizer: What it reads with.
        origin: Of the folder of Hugging Face's that it began as.
        chat: What it was tuned with; else what came with what it began as.
    """

    path: Path
    shape: TransformerConfig
    tokenizer: Tokenizer
    origin: Origin | None
    chat: ChatTemplate | None

    def text_model(self, model: LanguageModel, step: int) -> TextModel:
        """Put parameters to it."""
        about = f"{self.path}, step {step}"
        return TextModel(model, self.tokenizer, about, self.origin, self.chat, step)


def reading_of_run(path: Path) -> Reading:
    """Read all of a run of a language model but its parameters.

    Raises:
        RunError: If there is no run, or it is of another kind.
    """
    config, _ = read_run(path)
    if "model" not in config:
        raise RunError(f"a run must be of a language model here; {path} is of another kind.")
    tokenizer, origin = load_tokenizer(path / "tokenizer"), load_origin(path / "origin")
    chat = load_chat_template(path / "chat")
    if chat is None and origin is not None:
        chat = load_chat_template(origin.folder)
    shape = from_json(TransformerConfig, config["model"])
    shape = dataclasses.replace(shape, vocab_size=shape.vocab_size or tokenizer.vocab_size)
    return Reading(path, shape, tokenizer, origin, chat)


def _load_run(path: Path, sigma_rel: float, computed: TransformerConfig | None = None) -> TextModel:
    """Load the language model of a run, stored and computed as another configuration says."""
    config, _ = read_run(path)
    reading = reading_of_run(path)
    shape = computed or reading.shape
    lora = from_json(LoraConfig, config["lora"]) if "lora" in config else LoraConfig(rank=0)
    part = "ema" if sigma_rel or config["ema_decay"] else "model"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = newest_arrays(path / "checkpoints")
    inner = _place_of(path, arrays, part)

    def stored(name: str, x: Any) -> jax.ShapeDtypeStruct:
        """Each parameter in the type that it came with, which need not be that of all."""
        stacked = re.sub(r"^layers/[0-9]+/", "layers/", name)
        known = arrays.get("/".join((part, *inner, stacked)), {})
        dtype = "float32" if part == "ema" else known.get("dtype", x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=device)

    key = jax.random.key(0)
    model = jax.eval_shape(lambda: add_lora(LanguageModel(shape, key), lora, key))
    like = map_named(stored, model)
    if sigma_rel:
        made = reconstruct(path / "ema", like, sigma_rel)
        return reading.text_model(made.model, made.step)
    found = load_part(path / "checkpoints", {part: _nested(inner, like)})
    if found is None:
        raise RunError(
            f"a run must have a checkpoint to be sampled from; {path} has none yet. Wait for the "
            "first one (--save-every), or train with the same command again."
        )
    step, parts = found
    model = parts[part]
    for name in inner:
        model = model[name]
    if lora.rank:
        model = jax.jit(merge_lora)(model)
    return reading.text_model(model, step)


def _place_of(path: Path, arrays: Mapping[str, Any], part: str) -> tuple[str, ...]:
    """Say below which names a run keeps its language model.

    Raises:
        RunError: If it writes nothing, since it is a reward model.
    """
    held = {name.split("/")[1] for name in arrays if name.startswith(f"{part}/")}
    if "score" in held:
        raise RunError(f"a model must write to be sampled from; {path} is a reward model.")
    return ("policy",) if "policy" in held else ()


def _nested(names: Sequence[str], tree: PyTree) -> PyTree:
    """Put a tree below names."""
    for name in reversed(names):
        tree = {name: tree}
    return tree


def init_source(folder: str) -> Source | None:
    """Make what reads the parameters that a run begins with: of a run, or of such a folder."""
    if not folder:
        return None
    return functools.partial(_load_initial if is_pretrained(folder) else _load_policy, folder)


def _load_policy(folder: str, like: PyTree) -> Initial:
    """Read the language model of a run, from beside a critic or with its adapters merged."""
    path = Path(folder)
    config, _ = read_run(path)
    part = "ema" if config["ema_decay"] else "model"
    inner = _place_of(path, newest_arrays(path / "checkpoints"), part)
    if not inner and not config.get("lora", {}).get("rank"):
        return load_initial(folder, like)
    found = _load_run(path, 0.0, like.config)
    placed = jax.tree.map(
        lambda x, wanted: jax.device_put(x.astype(wanted.dtype), wanted.sharding), found.model, like
    )
    digest = digest_of_part(path / "checkpoints", found.step, "/".join((part, *inner)))
    return Initial(placed, found.about, digest)


def _load_initial(folder: str, like: PyTree) -> Initial:
    source = PretrainedFolder(folder)
    return Initial(
        source.load(like), describe_folder(folder, source), f"folder {source.checksum()}"
    )


class Beginning(NamedTuple):
    """What a run takes from what it begins with.

    Attributes:
        tokenizer: Of the texts.
        shape: Of the model, if that is a folder of Hugging Face's. Of a run the shape is not taken:
            flags that say another are refused.
    """

    tokenizer: Tokenizer
    shape: TransformerConfig | None = None


def beginning_of(init: str, workdir: str) -> Beginning | None:
    """Read what a run begins with; None where it begins with nothing.

    A run that has begun has it all: the folder may be gone, or another one by now.

    Args:
        init: The folder.
        workdir: Of the run; none does not look there.
    """
    if not init:
        return None
    run = Path(workdir)
    if workdir and (run / "tokenizer").is_dir():
        saved, _ = read_run(run)
        if saved["init"] == init:
            theirs = (run / "origin").is_dir()
            shape = from_json(TransformerConfig, saved["model"]) if theirs else None
            return Beginning(load_tokenizer(run / "tokenizer"), shape)
    if not is_pretrained(init):
        read_run(init)
        return Beginning(load_tokenizer(Path(init) / "tokenizer"))
    shape = PretrainedFolder(init).config
    return Beginning(load_pretrained_tokenizer(Path(init), shape.vocab_size), shape)


def adopt(model: TransformerConfig, shape: TransformerConfig, length: int) -> TransformerConfig:
    """Give a model another's shape; how it trains and computes stays.

    Args:
        model: How it trains and computes.
        shape: The shape.
        length: Tokens of a row.

    Raises:
        ValueError: If a row is longer than the context.
    """
    if length > shape.max_length:
        raise ValueError(
            f"`length` must not exceed the context of the model; got {length} and "
            f"{shape.max_length}. Give --length {shape.max_length}."
        )
    kept: dict[str, Any] = {name: getattr(model, name) for name in NOT_SHAPE}
    return dataclasses.replace(shape, **kept)
