"""What each stage of post-training did: one row a stage, all measured in the same way."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from genai_jax.data.tasks.functions import FUNCTIONS
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import tasks
from genai_jax.data.tasks.task_sets import TaskConfig, held_out_tasks
from genai_jax.evaluation.pass_at_k import estimate_pass_at_k
from genai_jax.evaluation.starting_points import starting_point
from genai_jax.evaluation.task_accuracy import answer_tasks, measure_tasks
from genai_jax.evaluation.text_runs import TextModel, load_text_model
from genai_jax.parallel.mesh import make_mesh
from genai_jax.rl.prompts import TaskPrompts
from genai_jax.rl.rollouts import RolloutConfig, draw_rollouts, make_scorer, rollout_rows
from genai_jax.training.initialise import digest_of_part
from genai_jax.training.json_lines import write_atomically

_SEED = 0  # of prompts and noise: the same for every stage
_TRIES = (1, 4, 16)


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """How much is measured of each stage.

    Attributes:
        tasks: Held-out tasks of each family and difficulty, answered by the likeliest tokens.
        replies: Held-out requests for replies, answered as the model draws.
        functions: Held-out functions to be written, each tried 16 times.
        answer_tokens: Most tokens of an answer.
        length: Most tokens of a prompt and its answer.
    """

    tasks: int = 50
    replies: int = 256
    functions: int = 50
    answer_tokens: int = 72
    length: int = 128

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, value in dataclasses.asdict(self).items():
            least = 2 if name == "replies" else 1  # of one there is no error of the mean
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")


class Stage(NamedTuple):
    """What was measured of a model.

    Attributes:
        easy: Share of easy tasks answered exactly right, by family, and `all` their mean.
        hard: Of hard ones.
        gold: Mean gold reward of replies, drawn at temperature 1.
        gold_error: Its standard error over prompts.
        kl: From the reference, in nats a reply, by k1.
        kl_error: Its standard error.
        reply_tokens: Mean length of a reply.
        passed: For hard functions, (k, pass@k, its 95 % interval).
    """

    easy: Mapping[str, float]
    hard: Mapping[str, float]
    gold: float
    gold_error: float
    kl: float
    kl_error: float
    reply_tokens: float
    passed: Sequence[tuple[int, float, float, float]]


def measure_stage(
    folder: str,
    reference: str,
    config: MeasureConfig,
    check: Callable[[], None] = lambda: None,
) -> Stage:
    """Measure the newest model of a run, or read what was measured of it before.

    Args:
        folder: Of the run.
        reference: Folder of the run that the divergence is measured from.
        config: How much.
        check: Is called every few tokens; may raise, to give up.
    """
    text, before = load_text_model(folder), load_text_model(reference)
    which = [_which(folder, text), _which(reference, before)]
    key = json.dumps([which, dataclasses.asdict(config)])
    kept = Path(folder) / "samples" / "measured.json"
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found.pop("of") == key:
            return Stage(**found)
    stage = _measure(folder, text, before, config, check)
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, json.dumps({"of": key, **stage._asdict()}, indent=1) + "\n")
    return stage


def _which(folder: str, text: TextModel) -> str:
    """Say which parameters these are, by a checksum."""
    return digest_of_part(Path(folder) / "checkpoints", text.step, "model")


def _measure(
    folder: str,
    text: TextModel,
    before: TextModel,
    config: MeasureConfig,
    check: Callable[[], None],
) -> Stage:
    renderer = starting_point(folder).renderer
    shares = {
        difficulty: measure_tasks(
            text.model, renderer, some, max_tokens=config.answer_tokens, check=check
        )
        for difficulty, some in held_out_tasks(TaskConfig(held_out=config.tasks)).items()
    }
    asked = TaskPrompts(renderer, tasks((REPLIES,), "easy", "held out", _SEED).__getitem__)
    how = RolloutConfig(config.replies, 1, config.answer_tokens, rows=64)
    rollouts = draw_rollouts(
        text.model,
        asked.take(0, config.replies),
        how,
        length=config.length,
        seed=_SEED,
        step=0,
        stop_ids=renderer.end_ids,
        vocab_size=renderer.tokenizer.vocab_size,
        purpose="stages",
        check=check,
    )
    samples = rollouts.samples(renderer.tokenizer)
    gold = np.array([gold_reward(sample.task, sample.answer) for sample in samples])
    rows = rollout_rows(rollouts, config.length)
    one = make_mesh(devices=jax.devices()[:1])
    scored = jax.device_get(make_scorer(one, 1.0)(text.model, before.model, None, rows))
    apart = (scored["old_log_probs"] - scored["ref_log_probs"]) * scored["loss_mask"]
    kl = apart.sum(-1)
    written = answer_tasks(
        text.model,
        renderer,
        [tasks((FUNCTIONS,), "hard", "held out", _SEED)[i] for i in range(config.functions)],
        max_tokens=config.answer_tokens,
        samples=max(_TRIES),
        temperature=0.8,
        check=check,
    )
    right = [sum(grade == 1.0 for grade in each.grades) for each in written]
    passed = [estimate_pass_at_k([(max(_TRIES), count) for count in right], k) for k in _TRIES]
    return Stage(
        shares["easy"],
        shares["hard"],
        *_mean(gold),
        *_mean(kl),
        float(scored["loss_mask"].sum(-1).mean()),
        passed,
    )


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Give the mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def describe_stages(stages: Mapping[str, Stage]) -> str:
    """Write the table: a row a stage, then the families, then the functions."""
    families = [name for name in next(iter(stages.values())).easy if name != "all"]
    width = max(map(len, stages))
    lines = [
        f"{'stage':{width}}  easy   hard   gold reward     KL (nats)     tokens",
        *(
            f"{name:{width}}  {x.easy['all']:5.1%}  {x.hard['all']:5.1%}  "
            f"{x.gold:+.2f} ± {x.gold_error:.2f}    {x.kl:5.2f} ± {x.kl_error:.2f}  "
            f"{x.reply_tokens:5.1f}"
            for name, x in stages.items()
        ),
        "",
        f"{'easy, hard':{width}}  " + "  ".join(f"{name:>12}" for name in families),
        *(
            f"{name:{width}}  " + "  ".join(f"{x.easy[f]:5.0%}, {x.hard[f]:4.0%}" for f in families)
            for name, x in stages.items()
        ),
        "",
        "hard functions, pass@k with 95 % intervals over tasks",
        *(
            f"{name:{width}}  "
            + "   ".join(f"@{k} {p:.0%} ({low:.0%} to {high:.0%})" for k, p, low, high in x.passed)
            for name, x in stages.items()
        ),
    ]
    return "\n".join(lines)
