"""What a run of post-training begins with: a language model, what it reads, and how it is asked."""

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import jax

from genai_jax.data.chat_cache import make_chat_renderer
from genai_jax.data.chat_templates import load_chat_template
from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat, save_chat_template
from genai_jax.data.pretrained_tokenizers import load_pretrained_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer, Tokenizer
from genai_jax.evaluation.text_runs import init_source, is_pretrained, reading_of_run
from genai_jax.interop.origin import load_origin
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.models.lm import LanguageModel, fit_vocabulary
from genai_jax.models.lora import add_lora, is_adapter, without_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.training.initialise import Initial, Source
from genai_jax.training.partition import Trains
from genai_jax.training.run_directory import RunDirectory, RunError, read_run


class StartingPoint(NamedTuple):
    """What a run begins with.

    Attributes:
        shape: Of the language model.
        renderer: Turns conversations into its ids; has its tokenizer.
        source: Reads its parameters; None draws them.
        folder: Where it is from; empty for one that is drawn.
    """

    shape: TransformerConfig
    renderer: ChatRenderer
    source: Source | None
    folder: str

    @property
    def tokenizer(self) -> Tokenizer:
        """What it reads with."""
        return self.renderer.tokenizer

    def settle(self, run: RunDirectory, **identity: str) -> None:
        """Bind a run to what it learns from, and write what must be known to go on with it.

        Args:
            run: That has been opened.
            identity: Digests by name, beside those of what it reads with.

        Raises:
            RunError: If it was begun with something else.
        """
        reading = {"tokenizer": self.tokenizer.digest, "chat": self.renderer.digest}
        run.require_identity({**identity, **reading})
        if not run.folder("tokenizer").exists():
            self.tokenizer.save(run.folder("tokenizer"))
        if not run.folder("chat").exists():
            save_chat_template(self.renderer.template, run.folder("chat"))
        if not self.folder or run.folder("origin").exists():
            return
        if is_pretrained(self.folder):
            PretrainedFolder(self.folder).origin.save(run.folder("origin"))
        elif origin := load_origin(Path(self.folder) / "origin"):
            origin.save(run.folder("origin"))


def starting_point(init: str, workdir: str = "") -> StartingPoint:
    """Find what a run begins with, or, once it has begun, has begun with.

    A run that has begun has it all: the folder may be gone, or another one by now.

    Args:
        init: Folder of a run of a language model, or of a model of Hugging Face's.
        workdir: Of the run that begins; none does not look there.

    Raises:
        RunError: If there is neither.
    """
    source = init_source(init)
    if source is None:
        raise RunError(
            "post-training begins with a model; got none. Give --init FOLDER: a run's --workdir, "
            "or a model of Hugging Face's."
        )
    if workdir and (Path(workdir) / "chat").is_dir():
        saved, _ = read_run(workdir)
        if saved.get("init") == init:
            return _of_run(Path(workdir), init, source)
    if not is_pretrained(init):
        return _of_run(Path(init), init, source)
    shape = PretrainedFolder(init).config
    tokenizer = load_pretrained_tokenizer(Path(init), shape.vocab_size)
    chat = load_chat_template(Path(init))
    return StartingPoint(shape, make_chat_renderer(tokenizer, chat), source, init)


def refuse_itself(workdir: str, *folders: str) -> None:
    """Refuse a run that would begin with what its own folder holds: `--overwrite` would delete it.

    Args:
        workdir: Of the run that begins.
        folders: Of what it reads.

    Raises:
        RunError: If one of them is the same folder.
    """
    for folder in folders:
        if folder and Path(folder).resolve() == Path(workdir).resolve():
            raise RunError(
                f"a run must not begin with what is in its own folder; {folder} is both. Choose "
                "another --workdir."
            )


def fresh_start(model: TransformerConfig) -> StartingPoint:
    """Begin with random parameters, and with bytes for tokens.

    Args:
        model: Its shape; a vocabulary of 0 is fitted.
    """
    tokenizer = ByteTokenizer(specials=CHAT_SPECIALS)
    return StartingPoint(
        fit_vocabulary(model, tokenizer.vocab_size), PlainChat(tokenizer), None, ""
    )


def draw_model(shape: TransformerConfig, lora: LoraConfig, seed: int) -> LanguageModel:
    """Draw a language model, with adapters if it is to have some.

    Args:
        shape: Of the model.
        lora: Of the adapters; rank 0 is none.
        seed: Of both.
    """
    key = jax.random.key(seed)
    model = LanguageModel(shape, key)
    return add_lora(model, lora, jax.random.fold_in(key, crc32(b"lora")))


def read_model(source: Source, like: LanguageModel, lora: LoraConfig, seed: int) -> Initial:
    """Read the parameters of a model, and put adapters on it if it is to have some.

    Args:
        source: Where they are from.
        like: What `draw_model` makes, or its description, with shardings.
        lora: Of the adapters.
        seed: Of the adapters: the same as that of `draw_model` gives the same.
    """
    initial = source(without_lora(like))
    key = jax.random.fold_in(jax.random.key(seed), crc32(b"lora"))
    model = initial.model
    if lora.rank:  # in one program instead of one for each array
        model = jax.jit(lambda base: add_lora(base, lora, key))(model)
    placed = jax.tree.map(lambda x, wanted: jax.device_put(x, wanted.sharding), model, like)
    return initial._replace(model=placed)


def trains(lora: LoraConfig) -> Trains:
    """Say what trains: the adapters where there are some, and heads of numbers; else everything."""
    if lora.rank == 0:
        return None
    return lambda name: is_adapter(name) or "score/" in name


def _of_run(path: Path, init: str, source: Source) -> StartingPoint:
    found = reading_of_run(path)
    renderer = make_chat_renderer(found.tokenizer, found.chat)
    return StartingPoint(found.shape, renderer, source, init)
