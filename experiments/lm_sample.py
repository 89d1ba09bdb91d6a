"""Writes text with a language model: of lm_pretrain.py, or from a folder of Hugging Face's."""

import dataclasses
import sys

import tyro

from genai_jax.command_line import parse_command_line
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import stream_text
from genai_jax.evaluation.text_runs import load_text_model
from genai_jax.training.run_directory import RunError


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What to write.

    Attributes:
        model: Folder of a run (the `--workdir` of its training), or of a model of Hugging Face's
            (config.json, safetensors, tokenizer.json or tokenizer.model).
        prompt: What the text begins with; it is printed too.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to write; the model's context may end before.
        stop: Texts before which to end; none of them is printed.
        seed: Of the noise: the same seed gives the same text.
        samples: Texts to write, with the seeds `seed`, `seed + 1`, ...
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the newest parameters, or the average that the run itself has used.
    """

    model: str = "runs/quickstart"
    prompt: str = ""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = dataclasses.field(
        default_factory=lambda: SamplingConfig(temperature=0.8, top_p=0.95)
    )
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


def main() -> int:
    """Read the command line and write."""
    presets = {"sample": ("a text", SampleConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    try:
        found = load_text_model(config.model, config.ema_sigma_rel)
        print(found.about, file=sys.stderr)
        for seed in range(config.seed, config.seed + config.samples):
            print(config.prompt, end="", flush=True)
            for text in stream_text(
                found.model,
                found.tokenizer,
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
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
