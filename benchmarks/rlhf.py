"""Times an iteration of PPO against TRL's, alternately, on this machine's CPU.

The same GPT-2 with random weights as policy, reference, critic and reward model, the same batch,
lengths, epochs and minibatches, float32, all cores. No answer ends by itself, so that both draw
and learn as many tokens.
"""

import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

if TYPE_CHECKING:
    from benchmarks.side_by_side import Call, Timing
    from genai_jax.nn.config import TransformerConfig
    from genai_jax.rl.policy_config import PolicyConfig
    from genai_jax.rl.rollouts import Prompt

PARTS = ("rollout", "reward", "scoring", "update")
_WARM_UP = 4  # iterations: one that is counted, three of which nobody takes the time
IDS = 256  # bytes; the id behind them ends texts, and pads TRL's


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        answers: Prompts of an iteration, each answered once.
        prompt: Tokens of a prompt.
        tokens: Tokens of an answer.
        epochs: Times that an answer is learned from.
        minibatches: Updates of an epoch.
        layers: Of each of the four models.
        width: Of each of the four models.
        heads: Of each of the four models.
        turns: How often each contender is timed.
        iterations: Iterations of a turn.
        compiled: Whether TRL takes part through `torch.compile` too.
        alone: Whether to leave TRL out.
    """

    answers: int = 64
    prompt: int = 16
    tokens: int = 32
    epochs: int = 2
    minibatches: int = 2
    layers: int = 4
    width: int = 128
    heads: int = 4
    turns: int = 8
    iterations: int = 3
    compiled: bool = False
    alone: bool = False

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.tokens


def about(config: BenchmarkConfig, drawn: int, updates: int, learned: int, size: int) -> str:
    """Say what an iteration did, as a contender counted it, and how large its models are."""
    return (
        f"{config.answers} answers of {drawn / config.answers:g} tokens, {updates} updates of "
        f"{learned / updates:g} of them; {size:,} parameters in four models"
    )


def parts_file(folder: str, name: str) -> Path:
    """Say where a contender notes how long each part of an iteration took, a line each."""
    return Path(folder) / f"{name.replace(' ', '_')}.jsonl"


def read_parts(folder: str, name: str) -> dict[str, list[float]]:
    """Read what a contender noted of all iterations but the first ones."""
    from genai_jax.training.json_lines import read_json_lines

    lines = read_json_lines(parts_file(folder, name))[_WARM_UP:]
    return {part: [line[part] for line in lines] for part in PARTS}


def make_prompts(config: BenchmarkConfig) -> np.ndarray:
    """Draw the prompts of several iterations: the time does not depend on them."""
    shape = (8 * config.answers, config.prompt)
    return np.random.default_rng(0).integers(0, IDS, shape, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class RandomPrompts:
    """Prompts without a meaning.

    Attributes:
        ids: Of each.
    """

    ids: np.ndarray

    def take(self, first: int, count: int) -> "Sequence[Prompt]":
        """Give some."""
        from genai_jax.rl.rollouts import Prompt

        return [Prompt(self.ids[(first + i) % len(self.ids)], "") for i in range(count)]


def shape_of(config: BenchmarkConfig) -> "TransformerConfig":
    """Give the shape of all four models: GPT-2's, small."""
    from genai_jax.models.lm import GPT2_124M

    return dataclasses.replace(
        GPT2_124M,
        vocab_size=IDS + 1,
        num_layers=config.layers,
        embed_dim=config.width,
        num_heads=config.heads,
        max_length=config.length,
    )


def make_policy_config(config: BenchmarkConfig) -> "PolicyConfig":
    """Make what `experiments/lm_ppo.py` would be told."""
    from genai_jax.rl.algorithms import PPO
    from genai_jax.rl.kl_control import KLControl
    from genai_jax.rl.policy_config import PolicyConfig
    from genai_jax.rl.rollouts import RolloutConfig
    from genai_jax.training.passes import Passes
    from genai_jax.training.schedules import ScheduleConfig

    return PolicyConfig(
        length=config.length,
        model=shape_of(config),
        rollouts=RolloutConfig(prompts=config.answers, group=1, max_tokens=config.tokens),
        loss=PPO.loss,
        advantages=PPO.advantages,
        kl=KLControl(beta=0.05),
        passes=Passes(config.epochs, config.minibatches),
        schedule=ScheduleConfig(1e-5, "constant"),
        clip_norm=0.0,
    )


def make_jax(config: BenchmarkConfig, folder: str) -> "tuple[Call, str]":
    """Make an iteration as `experiments/lm_ppo.py` runs it, without its files."""
    from genai_jax.parallel.cpu_devices import split_cpu

    split_cpu()
    import jax
    import jax.numpy as jnp

    from genai_jax.data.tokenizers import ByteTokenizer
    from genai_jax.evaluation.reward_runs import draw_scalar_model
    from genai_jax.parallel.mesh import make_mesh
    from genai_jax.rl.experience import Experience, make_on_policy_check
    from genai_jax.rl.learned_reward import LearnedReward
    from genai_jax.rl.policy_run import make_training
    from genai_jax.training.json_lines import JsonLines, read_json_lines
    from genai_jax.training.loop import host_means

    options = make_policy_config(config)
    mesh = make_mesh()
    state, train_step = make_training(options, mesh)
    reference = jax.tree.map(jnp.copy, state.model.policy)
    state = dataclasses.replace(state, context=state.context | {"reference": reference})
    judge = draw_scalar_model(options.model, options.lora, 7)
    own = Path(folder) / "experience.jsonl"
    experience = Experience(
        prompts=RandomPrompts(make_prompts(config)),
        config=options.rollouts,
        length=config.length,
        seed=options.seed,
        tokenizer=ByteTokenizer(),
        stop_ids=(),
        reward=LearnedReward(judge, config.length, mesh=mesh),
        rewarding=options.rewarding,
        advantages=options.advantages,
        mesh=mesh,
        timing=JsonLines(own),
    )
    check = make_on_policy_check(options.rollouts.most_gap)
    parts = JsonLines(parts_file(folder, "genai_jax"))
    leaves, done = train_step.leaves(state), 0

    def call() -> float:
        nonlocal leaves, done
        batch = experience.batch(done, lambda: train_step.whole(leaves))
        began = time.perf_counter()
        leaves, metrics = train_step.on_leaves(leaves, batch)
        values = host_means(metrics)
        check(values)
        done += 1
        seconds = {"update": time.perf_counter() - began}
        drawn = read_json_lines(own)[-1]
        parts.append(seconds | {n: drawn[f"{n}_seconds"] for n in ("rollout", "reward", "scoring")})
        return values["loss"]

    call()  # what is counted here is what was done
    updates = max(int(x) for x in jax.tree.leaves(train_step.whole(leaves).opt_state) if not x.ndim)
    batch = experience.batch(done, lambda: train_step.whole(leaves))
    drawn = int(batch["loss_mask"].sum())
    size = sum(x.size for x in jax.tree.leaves((state.model, reference, judge)))
    return call, about(config, drawn, updates, config.epochs * drawn, size)


def print_parts(timings: "dict[str, Timing]", folder: str) -> None:
    """Print what each part of an iteration takes."""
    width = max(map(len, timings))
    print(f"\n{'median / min ms':{width}} " + " ".join(f"{part:>17}" for part in PARTS))
    for name in timings:
        cells = (
            f"{statistics.median(x) * 1e3:8.1f} /{min(x) * 1e3:7.1f}"
            for x in read_parts(folder, name).values()
        )
        print(f"{name:{width}} " + " ".join(cells))


def main() -> int:
    """Time the contenders in turn and print the ratios."""
    from benchmarks.rlhf_trl import make_trl
    from benchmarks.side_by_side import print_table, time_in_turn, torch_versions

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        makers: "dict[str, Callable[[], Call | tuple[Call, str]]]" = {
            "genai_jax": functools.partial(make_jax, config, folder)
        }
        versions = torch_versions("transformers", "trl")
        if versions is None:
            print("TRL is not installed (pip install -e '.[bench]'): ours alone")
        elif not config.alone:
            print(versions)
            for name in ("TRL", "TRL compiled")[: 1 + config.compiled]:
                compiled = name != "TRL"
                makers[name] = functools.partial(make_trl, config, folder, compiled=compiled)
        timings = time_in_turn(makers, turns=config.turns, calls=config.iterations)
        print(
            f"\n{config.answers} answers of {config.tokens} tokens to prompts of {config.prompt}; "
            f"{config.epochs} epochs of {config.minibatches} minibatches"
        )
        print_table(timings, "genai_jax", "answers", config.answers)
        print_parts(timings, folder)
    return 0


if __name__ == "__main__":
    # Contenders import `benchmarks` from the root of the repository, wherever this was started.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
