"""Writes text with a model that lm_pretrain.py has trained."""

import dataclasses
import sys
from pathlib import Path

import jax

from genai_jax.command_line import parse_command_line
from genai_jax.data.tokenizers import Tokenizer, load_tokenizer
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import stream_text
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.training.checkpoints import load_part
from genai_jax.training.posthoc_ema import reconstruct
from genai_jax.training.run_directory import RunError, read_run
from genai_jax.training.saved_config import from_json


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to write.

    Attributes:
        run: Folder of the run (the `--workdir` of its training).
        prompt: What the text begins with; it is printed too.
        temperature: Divides the logits: below 1 the text is more likely, above 1 more surprising;
            0 always takes the likeliest token.
        top_k: Draw among the k likeliest tokens only; 0 among all.
        top_p: Draw among the fewest likeliest tokens whose probabilities sum to p; 1 among all.
        max_tokens: Most tokens to write; the model's context may end before.
        stop: Texts before which to end; none of them is printed.
        seed: Of the noise: the same seed gives the same text.
        samples: Texts to write, with the seeds `seed`, `seed + 1`, ...
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    run: str = "runs/quickstart"
    prompt: str = ""
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    max_tokens: int = 200
    stop: tuple[str, ...] = ()
    seed: int = 0
    samples: int = 1
    ema_sigma_rel: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p)


def load_run(folder: str, sigma_rel: float = 0.0) -> tuple[LanguageModel, Tokenizer, int]:
    """Load parameters of a run, its tokenizer, and their step.

    Args:
        folder: Of the run.
        sigma_rel: Length of an average to make from its snapshots; 0: the newest parameters (their
            average, where it keeps one).
    """
    path = Path(folder)
    config, _ = read_run(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    shape = from_json(TransformerConfig, config["model"])
    shape = dataclasses.replace(shape, vocab_size=shape.vocab_size or tokenizer.vocab_size)
    part = "ema" if sigma_rel or config["ema_decay"] else "model"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, "float32" if part == "ema" else x.dtype, sharding=device
        ),
        jax.eval_shape(lambda: LanguageModel(shape, jax.random.key(0))),
    )
    if sigma_rel:
        made = reconstruct(path / "ema", like, sigma_rel)
        return made.model, tokenizer, made.step
    found = load_part(path / "checkpoints", {part: like})
    if found is None:
        raise RunError(
            f"a run must have a checkpoint to be sampled from; {path} has none yet. Wait for the "
            "first one (--save-every), or train with the same command again."
        )
    step, parts = found
    return parts[part], tokenizer, step


def main() -> int:
    """Read the command line and write."""
    presets = {"sample": ("a text", SampleConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        model, tokenizer, step = load_run(config.run, config.ema_sigma_rel)
        print(f"{config.run}, step {step}", file=sys.stderr)
        for seed in range(config.seed, config.seed + config.samples):
            print(config.prompt, end="", flush=True)
            for text in stream_text(
                model,
                tokenizer,
                config.prompt,
                config.sampling,
                max_tokens=config.max_tokens,
                seed=seed,
                stop=config.stop,
            ):
                print(text, end="", flush=True)
            print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except BrokenPipeError:
        return 1
    except (RunError, ValueError, FileNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
