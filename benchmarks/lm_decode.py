"""Times greedy generation against transformers' `generate`, alternately, on this machine's CPU.

The same GPT-2, or a small Llama, with random weights: the prompt alone (and one token), then a
number of tokens more; what those cost is the difference. Float32, all cores.
"""

import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

if TYPE_CHECKING:
    from benchmarks.side_by_side import Call, Timing
    from genai_jax.nn.config import TransformerConfig

Setting = Literal["gpt2", "llama"]


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        setting: gpt2 has 124,439,808 parameters; llama 110 M with grouped heads and an untied head
            of 32,000 ids.
        rows: Prompts at once.
        prompt: Tokens of a prompt.
        tokens: Tokens drawn after the first.
        turns: How often each contender is timed.
        forms: Which of transformers' take part: eager, and compiled with a static cache.
    """

    setting: Setting = "gpt2"
    rows: int = 1
    prompt: int = 64
    tokens: int = 64
    turns: int = 5
    forms: tuple[Literal["eager", "static"], ...] = ("eager", "static")


def shape_of(setting: Setting) -> "TransformerConfig":
    """Give the shape of a setting."""
    from genai_jax.models.lm import GPT2_124M
    from genai_jax.nn.config import TransformerConfig

    if setting == "gpt2":
        return GPT2_124M
    return TransformerConfig(
        vocab_size=32_000,
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        num_kv_heads=4,
        mlp_dim=2048,
        max_length=1024,
        tied=False,
    )


def make_prompts(config: BenchmarkConfig) -> np.ndarray:
    """Draw token ids: the time does not depend on them."""
    return np.random.default_rng(0).integers(0, 32_000, (config.rows, config.prompt))


def make_jax(config: BenchmarkConfig, tokens: int) -> "tuple[Call, str]":
    """Make our generation, as `experiments/lm_sample.py` runs it."""
    import jax

    from genai_jax.decoding.generate import generate
    from genai_jax.decoding.sampling import SamplingConfig
    from genai_jax.models.lm import LanguageModel, count_parameters

    shape = shape_of(config.setting)
    model = jax.jit(lambda: LanguageModel(shape, jax.random.key(0)))()
    prompts = list(make_prompts(config))

    def call() -> float:
        results = generate(model, prompts, SamplingConfig(0.0), max_tokens=tokens)
        return float(results[0].tokens[-1])

    return call, f"{count_parameters(shape):,} parameters"


def make_torch(config: BenchmarkConfig, form: str, tokens: int) -> "tuple[Call, str]":
    """Make the same by transformers."""
    import torch
    import transformers

    from genai_jax.parallel.cpu_devices import usable_cores

    torch.set_num_threads(usable_cores())
    shape = shape_of(config.setting)
    if config.setting == "gpt2":
        settings: Any = transformers.GPT2Config()
    else:
        settings = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.embed_dim,
            intermediate_size=shape.mlp_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.max_length,
        )
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    prompts = torch.from_numpy(make_prompts(config))
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0}
    options |= {"max_new_tokens": tokens, "min_new_tokens": tokens}
    if form == "static":
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward)
    mask = torch.ones_like(prompts)

    def call() -> float:
        with torch.no_grad():
            return float(model.generate(prompts, attention_mask=mask, **options)[0, -1])

    return call, f"{sum(p.numel() for p in model.parameters()):,} parameters"


def read_bandwidth() -> float:
    """Measure how many bytes a second the cores read together."""
    import time

    import jax
    import jax.numpy as jnp

    values = jnp.ones((1000, 125_000), jnp.float32)
    add = jax.jit(lambda x: x.sum(1))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        add(values).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return values.nbytes / min(seconds)


def run(config: BenchmarkConfig, tokens: int) -> "dict[str, Timing]":
    """Time all contenders with a number of tokens."""
    from benchmarks.side_by_side import time_in_turn, torch_versions

    makers = {"genai_jax": functools.partial(make_jax, config, tokens)}
    if torch_versions("transformers") is None:
        print("PyTorch and transformers are not installed (pip install -e '.[bench]'): ours alone")
    else:
        for form in config.forms:
            makers[f"PyTorch {form}"] = functools.partial(make_torch, config, form, tokens)
    return time_in_turn(makers, turns=config.turns, calls=1)


def main() -> int:
    """Time the contenders in turn and print the ratios."""
    from benchmarks.side_by_side import torch_versions

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    print(torch_versions("transformers"))
    bandwidth = read_bandwidth()  # before anything else runs
    first, all_of_them = run(config, 1), run(config, 1 + config.tokens)
    rows = config.rows
    print(
        f"\n{config.setting}: {rows} prompts of {config.prompt} tokens, then {config.tokens} more"
    )
    print(f"{'':16} {'prompt tokens/s':>16} {'ms a step':>10} {'tokens/s':>10} {'peak MiB':>10}")
    steps = {
        name: (all_of_them[name].best - first[name].best) / config.tokens for name in all_of_them
    }
    for name, step in steps.items():
        prompt = rows * config.prompt / first[name].best
        peak = all_of_them[name].peak_bytes / 2**20
        print(f"{name:16} {prompt:16,.0f} {step * 1e3:10.2f} {rows / step:10.1f} {peak:10,.0f}")
    others = [name for name in steps if name != "genai_jax"]
    if others:
        decode = min(steps[name] for name in others) / steps["genai_jax"]
        prompt = min(first[name].best for name in others) / first["genai_jax"].best
        print(
            f"our prompts are read {prompt:.2f} times, our tokens drawn {decode:.2f} times as fast"
        )
    from genai_jax.models.lm import count_parameters

    achieved = 4 * count_parameters(shape_of(config.setting)) / steps["genai_jax"]
    print(
        f"ours reads {achieved / 1e9:.1f} GB/s of parameters, {achieved / bandwidth:.0%} of the "
        f"{bandwidth / 1e9:.1f} that the cores read"
    )
    return 0


if __name__ == "__main__":
    # Contenders import `benchmarks` from the root of the repository, wherever this was started.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
