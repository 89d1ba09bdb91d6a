"""Times the language model's train step against PyTorch's, alternately, on this machine's CPU."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

if TYPE_CHECKING:
    from benchmarks.side_by_side import Call

Setting = Literal["shakespeare", "shakespeare-gpu"]
_VOCABULARY = 65  # characters of Tiny Shakespeare
_STEPS_A_TURN = {"shakespeare": 20, "shakespeare-gpu": 1}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        setting: Shapes of nanoGPT's two presets of experiments/lm_pretrain.py.
        turns: How often each contender is timed: 20 steps of `shakespeare`, 1 of the other.
        microbatches: Parts of our batch; 0 leaves the choice to the script, as its users do.
        torch_microbatches: Parts of PyTorch's batch.
        gpt2_biases: Whether ours has the biases of transformers' GPT-2, which nanoGPT leaves out.
        dropout: Dropout of both.
        eager_only: Whether to leave out `torch.compile`.
    """

    setting: Setting = "shakespeare"
    turns: int = 10
    microbatches: int = 0
    torch_microbatches: int = 1
    gpt2_biases: bool = False
    dropout: float = 0.0
    eager_only: bool = False


def make_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    """Draw token ids: the time does not depend on them."""
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, (rows, length + 1), dtype=np.int32)
    mask = np.ones((rows, length), np.float32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "loss_mask": mask}


def make_jax_step(config: BenchmarkConfig) -> "Call":
    """Make one step of `experiments/lm_pretrain.py`, from its preset."""
    from genai_jax.parallel.cpu_devices import split_cpu

    split_cpu()
    import jax

    from experiments.lm_pretrain import PRESETS, make_training
    from genai_jax.parallel.mesh import make_mesh
    from genai_jax.parallel.sharding import batch_sharding

    preset = dataclasses.replace(PRESETS[config.setting][1], microbatches=config.microbatches)
    shape = dataclasses.replace(
        preset.model,
        vocab_size=_VOCABULARY,
        dropout=config.dropout,
        attention_dropout=config.dropout,
    )
    if config.gpt2_biases:
        shape = dataclasses.replace(
            shape, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True
        )
    mesh = make_mesh()
    state, train_step = make_training(preset, shape, mesh)
    batch = make_batch(preset.batch_size, preset.length)
    batch = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in batch.items()}

    leaves = jax.tree.leaves(state)  # as the loop keeps them

    def step() -> float:
        nonlocal leaves
        leaves, metrics = train_step.on_leaves(leaves, batch)
        total, weight = metrics["loss"]
        return float(total) / float(weight)

    return step


def make_torch_step(config: BenchmarkConfig, *, compiled: bool) -> "Call":
    """Make the same step from transformers' GPT-2: f32, fused AdamW, two groups, clipping."""
    import torch
    import transformers

    from experiments.lm_pretrain import PRESETS
    from genai_jax.parallel.cpu_devices import usable_cores

    torch.set_num_threads(usable_cores())
    preset = PRESETS[config.setting][1]
    shape = preset.model
    model: Any = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=_VOCABULARY,
            n_positions=shape.max_length,
            n_embd=shape.embed_dim,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            activation_function="gelu",  # exact, as nanoGPT has it
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            use_cache=False,
        )
    )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() >= 2]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=preset.schedule.peak,
        betas=(preset.optimizer.beta1, preset.optimizer.beta2),
        weight_decay=preset.optimizer.weight_decay,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    batch = make_batch(preset.batch_size, preset.length)
    parts = [
        (torch.from_numpy(tokens), torch.from_numpy(targets).long().reshape(-1))
        for tokens, targets in zip(
            np.split(batch["tokens"], config.torch_microbatches),
            np.split(batch["targets"], config.torch_microbatches),
            strict=True,
        )
    ]

    def step() -> float:
        value = 0.0
        for tokens, targets in parts:
            logits = forward(input_ids=tokens).logits.reshape(-1, _VOCABULARY)
            loss = torch.nn.functional.cross_entropy(logits, targets) / len(parts)
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), preset.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    return step


def main() -> int:
    """Time the contenders in turn and print the ratios."""
    from benchmarks.side_by_side import print_table, time_in_turn, torch_versions
    from experiments.lm_pretrain import PRESETS

    config = tyro.cli(BenchmarkConfig, description=__doc__)
    makers: "dict[str, Callable[[], Call | tuple[Call, str]]]" = {
        "genai_jax": functools.partial(make_jax_step, config)
    }
    versions = torch_versions("transformers")
    if versions is None:
        print("PyTorch and transformers are not installed (pip install -e '.[bench]'): ours alone")
    else:
        print(versions)
        for form in ("eager",) if config.eager_only else ("eager", "compiled"):
            make = functools.partial(make_torch_step, config, compiled=form == "compiled")
            makers[f"PyTorch {form}"] = make
    timings = time_in_turn(makers, turns=config.turns, calls=_STEPS_A_TURN[config.setting])
    preset = PRESETS[config.setting][1]
    print(f"\n{config.setting}: {preset.batch_size} rows of {preset.length} tokens a step")
    print_table(timings, "genai_jax", "tokens", preset.batch_size * preset.length)
    return 0


if __name__ == "__main__":
    # Contenders import `experiments` from the root of the repository, wherever this was started.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
