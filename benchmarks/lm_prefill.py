"""Measures what reading a long prompt takes: time, and memory at its peak, by the prompt's length.

Each length in a process of its own; a small model, so that what grows with the length is seen.
"""

import dataclasses
import multiprocessing
import resource
import time
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure.

    Attributes:
        lengths: Tokens of the prompts.
        chunk: Tokens that are read at a time.
        layers: Of the model, 384 wide with 6 heads.
    """

    lengths: tuple[int, ...] = (2048, 4096, 8192)
    chunk: int = 64
    layers: int = 6


def measure(config: BenchmarkConfig, length: int) -> dict[str, float]:
    """Read one prompt, twice: the first time compiles."""
    import jax
    import numpy as np

    from genai_jax.decoding.engine import Engine
    from genai_jax.decoding.requests import Request
    from genai_jax.decoding.sampling import SamplingConfig
    from genai_jax.models.lm import LanguageModel
    from genai_jax.nn.config import TransformerConfig

    shape = TransformerConfig(
        vocab_size=1000,
        num_layers=config.layers,
        embed_dim=384,
        num_heads=6,
        max_length=length + config.chunk,
    )
    model = jax.jit(lambda: LanguageModel(shape, jax.random.key(0)))()
    jax.block_until_ready(jax.tree.leaves(model))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    before = peak()
    engine = Engine(model, chunk=config.chunk)
    request = Request(np.arange(length) % 1000, SamplingConfig(0.0), max_tokens=1)
    engine.run([request])
    began = time.perf_counter()
    engine.run([request])
    seconds = time.perf_counter() - began
    rows = 3  # two of the engine, and the one that is being read
    cache = rows * 2 * shape.num_layers * (length + config.chunk) * shape.embed_dim * 4 / 2**20
    return {"seconds": seconds, "peak": peak() - before, "cache": cache}


def main() -> int:
    """Measure every length."""
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    print(f"{'tokens':>7} {'seconds':>8} {'tokens/s':>9} {'MiB more':>9} {'of them caches':>15}")
    context: Any = multiprocessing.get_context("spawn")
    for length in config.lengths:
        with context.Pool(1) as pool:
            found = pool.apply(measure, (config, length))
        print(
            f"{length:7} {found['seconds']:8.2f} {length / found['seconds']:9,.0f} "
            f"{found['peak']:9,.0f} {found['cache']:15,.0f}"
        )
    return 0


if __name__ == "__main__":
    main()
