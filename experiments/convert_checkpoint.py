"""Converts a language model: a run to a folder of Hugging Face's, or such a folder to a run.

A folder that became a run, and was trained on perhaps, goes out again with the names, types and
files that it came with.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

from genai_jax.command_line import parse_command_line
from genai_jax.data.pretrained_tokenizers import (
    export_tokenizer,
    load_pretrained_tokenizer,
    token_ids,
)
from genai_jax.evaluation.text_runs import describe_folder, is_pretrained, load_text_model
from genai_jax.interop.export import save_pretrained
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.nn.config import Dtype, TransformerConfig
from genai_jax.training.checkpoints import Checkpoints, finished_steps
from genai_jax.training.run_directory import RunError, open_run


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """What to convert.

    Attributes:
        model: Folder of a run, or of a model of Hugging Face's.
        out: Folder to make: a new one, or an empty one.
        to: What to make of it; auto makes of each the other.
        dtype: Type of the numbers in a folder of Hugging Face's; as_it_is takes those that the
            model came with, or is trained in.
        max_file_gb: Largest file of such a folder, in GB (10⁹ bytes); 0 is as it came, or 5.
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    model: str = "runs/quickstart"
    out: str = "converted"
    to: Literal["auto", "huggingface", "run"] = "auto"
    dtype: Literal["as_it_is"] | Dtype = "as_it_is"
    max_file_gb: float = 0.0
    ema_sigma_rel: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.max_file_gb < 1e6:
            raise ValueError(f"`max_file_gb` must be from 0 to 10⁶; got {self.max_file_gb}. Try 5.")


@dataclasses.dataclass(frozen=True)
class ConvertedRun:
    """What others read of the configuration of a run.

    Attributes:
        init: Folder of Hugging Face's that it was.
        model: The transformer.
        ema_decay: 0: there is no average.
    """

    init: str
    model: TransformerConfig
    ema_decay: float = 0.0


def to_huggingface(config: ConvertConfig, out: Path) -> None:
    """Write a folder of Hugging Face's."""
    dtype = None if config.dtype == "as_it_is" else jnp.dtype(config.dtype)
    most = int(config.max_file_gb * 1e9) or None
    if is_pretrained(config.model):
        source = PretrainedFolder(config.model)
        print(describe_folder(config.model, source), flush=True)
        save_pretrained(out, source.load(), origin=source.origin, dtype=dtype, most_file_bytes=most)
        return
    found = load_text_model(config.model, config.ema_sigma_rel)
    print(found.about, flush=True)
    save_pretrained(
        out,
        found.model,
        origin=found.origin,
        dtype=dtype,
        most_file_bytes=most,
        token_ids=token_ids(found.tokenizer),
    )
    if found.origin is None:
        print(export_tokenizer(found.tokenizer, out))


def to_run(config: ConvertConfig, out: Path) -> None:
    """Write a run that has made no step yet."""
    source = PretrainedFolder(config.model)
    tokenizer = load_pretrained_tokenizer(Path(config.model), source.config.vocab_size)
    print(describe_folder(config.model, source), flush=True)
    settings = ConvertedRun(config.model, source.config)
    with (
        open_run(out, settings) as run,
        Checkpoints(run.folder("checkpoints")) as checkpoints,
    ):
        tokenizer.save(run.folder("tokenizer"))
        source.origin.save(run.folder("origin"))
        checkpoints.save(0, {"model": source.load()})
    if not finished_steps(run.folder("checkpoints")):  # a full disk costs a training run nothing
        raise OSError(f"the parameters could not be written to {config.out}, see above.")


def convert(config: ConvertConfig) -> None:
    """Convert beside the place where the result goes, so that it appears there whole or not."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`out` must be a new or empty folder; {out} is not. Choose another.")
    pretrained = is_pretrained(config.model)
    kind = config.to if config.to != "auto" else "run" if pretrained else "huggingface"
    if kind == "run" and not pretrained:
        raise ValueError(f"{config.model} is no folder of Hugging Face's. Leave out --to.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        (to_run if kind == "run" else to_huggingface)(config, made)
        made.replace(out)


def main() -> int:
    """Read the command line and convert."""
    presets = {"convert": ("a model", ConvertConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        convert(config)
    except KeyboardInterrupt:
        return 130
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    print(f"written to {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
