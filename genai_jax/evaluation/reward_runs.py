"""Reward models of runs: their scale, and how well they know what people prefer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.evaluation.evaluator import Rows
from genai_jax.evaluation.starting_points import draw_model, starting_point
from genai_jax.models.heads import ScalarModel, ScoreReading, rescaled
from genai_jax.models.lora import merge_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.reward_model import answer_rewards
from genai_jax.parallel.sharding import batch_sharding, over_rows
from genai_jax.training.checkpoints import load_part, read_manifest
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.run_directory import RunError, read_run
from genai_jax.training.saved_config import from_json

_SCALE = "reward_scale.json"


class Scale(NamedTuple):
    r"""A line that rewards are put on, so that their mean is 0 and their deviation 1.

    Attributes:
        gain: $1 / \sigma$.
        bias: $-\mu / \sigma$.
    """

    gain: float = 1.0
    bias: float = 0.0

    def save(self, folder: Path) -> None:
        """Write it into a run."""
        write_atomically(folder / _SCALE, json.dumps(self._asdict()) + "\n")


def load_scale(folder: Path) -> Scale:
    """Read what `Scale.save` wrote; one that changes nothing where there is none."""
    path = folder / _SCALE
    return Scale(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Scale()


def scale_of(rewards: Float[np.ndarray, " n"]) -> Scale:
    r"""Find the scale under which some rewards have the mean 0 and the deviation 1.

    $\mathrm{gain} = 1 / \sigma$, $\mathrm{bias} = -\mu / \sigma$; equal rewards keep their width.

    Reference: Ziegler et al., arXiv:1909.08593, section 2.1.
    """
    deviation = float(np.std(rewards))
    gain = 1 / deviation if deviation > 1e-6 else 1.0
    return Scale(gain, -gain * float(np.mean(rewards)))


def make_reward_reader(
    mesh: Mesh, rows: Rows, batch_size: int, most: int | None = None
) -> Callable[[ScalarModel], Float[np.ndarray, "rows k"]]:
    """Make what gives the rewards of all answers of rows; NaN where there is no answer.

    Args:
        mesh: Its devices share the rows of a batch.
        rows: Of answers, as `data.answer_rows` makes them; rows past the end can be asked for.
        batch_size: Rows of a call.
        most: Rows that are read, the first ones; None is all.
    """
    count = min(len(rows), most or len(rows))
    read = jax.jit(over_rows(answer_rewards, mesh, (False, True)))

    def rewards(model: ScalarModel) -> Float[np.ndarray, "rows k"]:
        found = []
        for first in range(0, count, batch_size):
            some = [rows[i] for i in range(first, first + batch_size)]
            batch = {n: np.stack([row[n] for row in some]) for n in ("tokens", "lengths")}
            exists = np.stack([row["answer_mask"] for row in some]) > 0
            batch = jax.device_put(batch, batch_sharding(mesh))
            found.append(np.where(exists, np.asarray(read(model, batch)), np.nan))
        return np.concatenate(found)[:count]

    return rewards


class RewardRun(NamedTuple):
    """A reward model, ready to judge.

    Attributes:
        model: On its scale, without adapters.
        renderer: Turns conversations into what it reads.
        about: Where it is from, in words.
        digest: Which one it is, with a checksum.
    """

    model: ScalarModel
    renderer: ChatRenderer
    about: str
    digest: str


def load_reward_run(folder: str) -> RewardRun:
    """Load the newest reward model of a run.

    Args:
        folder: Its `--workdir`.

    Raises:
        RunError: If there is no run, or it is of another kind, or has no checkpoint.
    """
    config, _ = read_run(folder)
    if "reward_loss" not in config:
        raise RunError(f"a reward model must come from a run of lm_reward.py; {folder} is another.")
    path = Path(folder)
    point = starting_point(folder)
    lora = from_json(LoraConfig, config["lora"])
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    reading = config.get("reading", "last")  # runs of before had no choice
    model = jax.eval_shape(lambda: draw_scalar_model(point.shape, lora, 0, reading=reading))
    # The moving average, where the run kept one: that is what was evaluated, and scaled.
    part = "ema" if config["ema_decay"] else "model"

    def stored(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = np.float32 if part == "ema" else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=device)

    found = load_part(path / "checkpoints", {part: jax.tree.map(stored, model)})
    if found is None:
        raise RunError(f"a reward model must have a checkpoint; {folder} has none yet.")
    step, parts = found
    model = merge_lora(parts[part]) if lora.rank else parts[part]
    scale = load_scale(path)
    known = json.dumps([read_manifest(path / "checkpoints" / str(step))["arrays"], scale])
    digest = f"{step} {crc32(known.encode()):08x}"
    about = f"{folder}, step {step}"
    return RewardRun(rescaled(model, *scale), point.renderer, about, digest)


def draw_scalar_model(
    shape: TransformerConfig,
    lora: LoraConfig,
    seed: int,
    *,
    init_std: float | None = None,
    reading: ScoreReading = "last",
) -> ScalarModel:
    """Draw a language model with a head of one number, with adapters if it is to have some.

    Args:
        shape: Of the language model.
        lora: Of the adapters; rank 0 is none.
        seed: Of all.
        init_std: Of the head, as `ScalarModel` has it.
        reading: Of the head, as `ScalarModel` has it.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return ScalarModel(draw_model(shape, lora, seed), key, init_std=init_std, reading=reading)


class Calibration(NamedTuple):
    """How often a reward model is right, beside how sure it is.

    Attributes:
        accuracy: Share of pairs whose better answer has the higher reward; a tie is half.
        error: Mean distance of confidence and accuracy over ten bins of as many pairs.
        bins: (confidence, accuracy, pairs) of each.
    """

    accuracy: float
    error: float
    bins: tuple[tuple[float, float, int], ...]


def calibration_of(gaps: Float[np.ndarray, " n"], num_bins: int = 10) -> Calibration:
    r"""Compare $\sigma(|\Delta|)$ with how often the better answer of a pair wins.

    $\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|$ over bins of equal mass.

    Args:
        gaps: Δ, reward of the better answer minus that of the other.
        num_bins: Bins of as many pairs each.

    Reference: Guo et al., arXiv:1706.04599, eq. 5, with bins of equal mass.
    """
    right = np.where(gaps == 0, 0.5, gaps > 0)
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    order = np.argsort(sure, kind="stable")
    bins = []
    for members in np.array_split(order, min(num_bins, len(order))):
        bins.append((float(sure[members].mean()), float(right[members].mean()), len(members)))
    error = sum(n * abs(a - c) for c, a, n in bins) / len(gaps)
    return Calibration(float(right.mean()), float(error), tuple(bins))


def pair_gaps(rewards: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, " pairs"]:
    """List the reward of the better answer minus that of the other, for all pairs of all rows."""
    count = rewards.shape[1]
    better, worse = np.triu_indices(count, 1)
    gaps = rewards[:, better] - rewards[:, worse]
    return gaps[np.isfinite(gaps)]
