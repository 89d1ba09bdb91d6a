"""Over-optimises a reward model on purpose: gold reward against distance, best of n and RL.

A policy imitates a writer of replies; a proxy reward model learns from few preferences of a judge
whose own, gold reward is known. Then the proxy is optimised in two ways, and both rewards are
measured on the way: somewhere the proxy goes on rising and the gold reward falls. Every part is one
of the other scripts, in a process of its own; the same command again goes on where it was stopped.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genai_jax.command_line import parse_command_line
from genai_jax.data.tasks.gold_preferences import reply_examples
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import tasks
from genai_jax.evaluation.reward_runs import load_reward_run
from genai_jax.evaluation.text_runs import load_text_model
from genai_jax.rl.best_of_n import kl_bound
from genai_jax.rl.learned_reward import LearnedReward
from genai_jax.rl.overoptimisation import Curve, Fitted, best_of_n_estimates, fit_together
from genai_jax.rl.overoptimisation_plot import draw_curves
from genai_jax.rl.prompts import TaskPrompts
from genai_jax.rl.rollouts import RolloutConfig, draw_rollouts
from genai_jax.training.json_lines import read_json_lines, write_atomically
from genai_jax.training.parts import command_of, run_parts
from genai_jax.training.run_directory import RunError

_HERE = Path(__file__).resolve().parent
_ANSWERS_AT_A_TIME = 256
_EPOCHS, _PAIRS_OF_A_STEP = 2, 32  # of the proxy
_NO_END = 3.0  # an answer that was cut earns minus this; the proxy has deviation 1


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """An experiment in over-optimisation.

    Attributes:
        workdir: Folder of the runs of all parts, of the picture and of the report.
        init: Folder of a run that writes replies (lm_sft.py); none trains a small one.
        seed: Of every part.
        cpu_devices: On a CPU, number of devices that each part makes of it; 0 is one a core.
        demonstrations: Replies of the writer that the policy imitates.
        preferences: Pairs that the proxy learns from; the fewer, the worse it is.
        prompts: Held-out prompts that all policies are measured by.
        answers: N, answers of the initial policy to each, for the best of n = 1, 2, 4, ... N.
        betas: Coefficients of the divergence in the reward: one run of RL each.
        steps: Of reinforcement learning.
        measure_every: Steps between two points of its curve.
        learning_rate: Of reinforcement learning.
        length: Most tokens of a prompt and its answer.
        answer_tokens: Most tokens of an answer.
        policy: More flags for lm_sft.py, with an equals sign: --policy="--steps 100".
        proxy: More flags for lm_reward.py.
        learning: More flags for lm_grpo.py.
    """

    workdir: str = "runs/lm_overoptimisation"
    init: str = ""
    seed: int = 0
    cpu_devices: int = 0
    demonstrations: int = 12_000
    preferences: int = 3000
    prompts: int = 128
    answers: int = 64
    betas: tuple[float, ...] = (0.0, 0.1)
    steps: int = 60
    measure_every: int = 4
    learning_rate: float = 1.5e-4
    length: int = 128
    answer_tokens: int = 64
    policy: str = ""
    proxy: str = ""
    learning: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("demonstrations", "preferences", "prompts", "measure_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.answers < 8:
            raise ValueError(
                f"`answers` must be at least 8, to fit the best of 2, 4 and 8; got {self.answers}."
            )
        if self.steps < 3 * self.measure_every:
            raise ValueError(
                f"`steps` must be at least three times `measure_every`, to fit a curve; got "
                f"{self.steps} and {self.measure_every}."
            )
        if not self.betas or min(self.betas) < 0 or len(set(self.betas)) < len(self.betas):
            raise ValueError(f"`betas` must be different numbers, not below 0; got {self.betas}.")

    @property
    def at(self) -> Path:
        """The folder of everything."""
        return Path(self.workdir)

    @property
    def initial(self) -> Path:
        """The folder of the initial policy."""
        return Path(self.init) if self.init else self.at / "policy"

    def learnt(self, beta: float) -> Path:
        """The folder of the policy that a coefficient leads to."""
        return self.at / f"beta_{beta:g}"


PRESETS: dict[str, tuple[str, LabConfig]] = {
    "lab": ("from random weights, on the embedded replies", LabConfig()),
}

# What differs from the presets of the scripts.
_IMITATION = {
    **{"steps": 300, "batch-size": 32, "evaluate-every": 300, "data.validation-fraction": 0.05},
    **{"model.num-layers": 2, "model.embed-dim": 128, "model.num-heads": 4, "model.mlp-dim": 384},
}
_JUDGING = {
    **{"batch-size": _PAIRS_OF_A_STEP, "gold.held-out": 500, "gold.answers": 2},
    **{"reading": "last", "reward-loss.centring": 0},
    # Adam needs some three times as many steps.
    **{"optimizer.name": "muon", "optimizer.muon-momentum": 0.85, "schedule.peak": 2e-3},
}
_LEARNING = {
    **{"ask": "replies", "rewards.model": 1, "rewards.grade": 0, "schedule.kind": "constant"},
    **{"advantages.missing-end": "replace", "advantages.missing-end-penalty": _NO_END},
    **{"rollouts.prompts": 16, "rollouts.group": 8},
}


def commands_of(config: LabConfig) -> dict[str, list[str]]:
    """Write the command of every part, by its name."""
    common = {"seed": config.seed, "cpu-devices": config.cpu_devices, "length": config.length}
    plan: dict[str, tuple[str, str, Mapping[str, object], str]] = {}
    if not config.init:
        given = {"workdir": config.initial, "data.path": config.at / "replies.jsonl"}
        plan["policy"] = ("lm_sft.py", "tasks", {**given, **_IMITATION}, config.policy)
    judging = {
        **{"workdir": config.at / "proxy", "init": config.initial},
        "steps": max(1, config.preferences * _EPOCHS // _PAIRS_OF_A_STEP),
        "gold.preferences": config.preferences,
    }
    plan["proxy"] = ("lm_reward.py", "gold", {**judging, **_JUDGING}, config.proxy)
    for beta in config.betas:
        learning = {
            **{"workdir": config.learnt(beta), "kl.beta": beta, "init": config.initial},
            **{"reward-model": config.at / "proxy", "measured": config.prompts},
            **{"rollouts.max-tokens": config.answer_tokens, "schedule.peak": config.learning_rate},
            **{"steps": config.steps, "evaluate-every": config.measure_every},
        }
        name = config.learnt(beta).name
        plan[name] = ("lm_grpo.py", "rloo", {**learning, **_LEARNING}, config.learning)
    return {
        name: command_of(_HERE / script, preset, {**common, **special}, more)
        for name, (script, preset, special, more) in plan.items()
    }


def run_lab(config: LabConfig) -> int:
    """Make all parts that are not finished, then the curves; returns the exit code."""
    config.at.mkdir(parents=True, exist_ok=True)
    if not config.init:
        write_demonstrations(config)
    code, _ = run_parts(commands_of(config))
    if code:
        return code
    print("\n=== best of n", flush=True)
    scores = answer_often(config)
    curves = [best_of_n_curve(scores)]
    curves += [learnt_curve(config, beta, scores) for beta in config.betas]
    report(config, curves)
    return 0


def write_demonstrations(config: LabConfig) -> None:
    """Write replies of the writer as JSON lines."""
    lines = []
    for example in reply_examples(config.seed, "train", config.demonstrations):
        asked, answered = (message["content"] for message in example.messages)
        lines.append(json.dumps({"prompt": asked, "completion": answered}) + "\n")
    write_atomically(config.at / "replies.jsonl", "".join(lines))


class Scores(NamedTuple):
    """What answers of the initial policy earn, N to each of P prompts.

    Attributes:
        proxy: By the proxy.
        gold: By the judge's own reward.
    """

    proxy: Float[np.ndarray, "p n"]
    gold: Float[np.ndarray, "p n"]

    @property
    def scale(self) -> float:
        """Deviation of the gold reward over that of the proxy: both are shown in its units.

        1 where the proxy says the same of all, as of a policy that ends no answer.
        """
        width = self.proxy.std()
        return float(self.gold.std() / width) if width else 1.0


def answer_often(config: LabConfig) -> Scores:
    """Have the initial policy answer the prompts that all policies are measured by.

    The scores are kept, and are found again by whoever asks for the same.
    """
    policy, judge = load_text_model(str(config.initial)), load_reward_run(str(config.at / "proxy"))
    kept = config.at / "best_of_n.npz"
    made_of = f"{policy.about} {judge.digest} {config.seed} {config.answer_tokens} {config.length}"
    shape = config.prompts, config.answers
    if kept.exists():
        with np.load(kept) as found:
            if str(found["made_of"]) == made_of and found["gold"].shape == shape:
                return Scores(found["proxy"], found["gold"])
    source = tasks((REPLIES,), "easy", "held out", 0)  # those of `rl.asked`
    prompts = TaskPrompts(judge.renderer, source.__getitem__)
    proxy: list[float] = []
    gold: list[float] = []
    at_a_time = max(1, _ANSWERS_AT_A_TIME // config.answers)
    for first in range(0, config.prompts, at_a_time):
        count = min(at_a_time, config.prompts - first)
        samples = draw_rollouts(
            policy.model,
            prompts.take(first, count),
            RolloutConfig(count, config.answers, config.answer_tokens),
            length=config.length,
            seed=config.seed,
            step=first,
            stop_ids=judge.renderer.end_ids,
            vocab_size=policy.tokenizer.vocab_size,
            purpose="best of n",
        ).samples(policy.tokenizer)
        said = LearnedReward(judge.model, config.length)(samples)
        proxy += [x if sample.ended else -_NO_END for x, sample in zip(said, samples, strict=True)]
        gold += [gold_reward(sample.task, sample.answer) for sample in samples]
        print(f"{len(gold):,} of {config.prompts * config.answers:,} answers", flush=True)
    scores = Scores(np.reshape(proxy, shape), np.reshape(gold, shape))
    content = io.BytesIO()
    np.savez(content, made_of=made_of, **scores._asdict())
    write_atomically(kept, content.getvalue())
    return scores


def best_of_n_curve(scores: Scores) -> Curve:
    """Choose the best of 1, 2, 4, ... N answers by the proxy, and see what they are worth."""
    sizes = [2**i for i in range(scores.gold.shape[1].bit_length())]
    gold = [best_of_n_estimates(scores.proxy, scores.gold, n).mean() for n in sizes]
    proxy = [best_of_n_estimates(scores.proxy, scores.proxy, n).mean() for n in sizes]
    return Curve(
        "best of n",
        "best of n",
        np.array([kl_bound(n) for n in sizes]),
        np.array(gold) - scores.gold.mean(),
        (np.array(proxy) - scores.proxy.mean()) * scores.scale,
    )


def learnt_curve(config: LabConfig, beta: float, scores: Scores) -> Curve:
    """Read what a run of reinforcement learning was worth at its evaluations."""
    lines = read_json_lines(config.learnt(beta) / "metrics.jsonl")
    names = ("val/kl", "val/gold", "val/reward")
    kl, gold, proxy = np.array([[x[n] for n in names] for x in lines if "val/gold" in x], float).T
    return Curve(
        f"beta {beta:g}",
        "reinforcement learning",
        kl,
        gold - scores.gold.mean(),
        (proxy - scores.proxy.mean()) * scores.scale,
    )


def report(config: LabConfig, curves: Sequence[Curve]) -> None:
    """Fit, draw, write down and tell."""
    panels = [curves[:1], curves[1:]]
    fits = [fit_if_possible(panel) for panel in panels]
    draw_curves(list(zip(panels, fits, strict=True)), config.at / "overoptimisation.png")
    points = {c.name: {n: getattr(c, n).tolist() for n in ("kl", "gold", "proxy")} for c in curves}
    fitted = {fit.form: fit._asdict() for fit in fits if fit is not None}
    content = json.dumps({"points": points, "fits": fitted}, indent=2)
    write_atomically(config.at / "curves.json", content + "\n")
    text = describe(curves, fits)
    write_atomically(config.at / "report.txt", text + "\n")
    print(f"{text}\ndrawn: {config.at / 'overoptimisation.png'}", flush=True)


def fit_if_possible(curves: Sequence[Curve]) -> Fitted | None:
    """Fit curves of one form; None, with a warning, where too few points are away from 0."""
    try:
        return fit_together(curves)
    except ValueError as error:
        print(f"WARNING: {curves[0].form} has no fit: {error}", file=sys.stderr)
        return None


def describe(curves: Sequence[Curve], fits: Sequence[Fitted | None]) -> str:
    """Tell what was found, in lines."""
    lines = [f"{'above the initial policy':24} d = sqrt KL    gold   proxy"]
    for curve in curves:
        best, last = int(np.argmax(curve.gold)), int(np.argmax(curve.kl))
        for name, i in (("most gold", best), ("farthest", last)):
            lines.append(
                f"{curve.name + ', ' + name:24} {np.sqrt(max(curve.kl[i], 0)):11.2f} "
                f"{curve.gold[i]:7.2f} {curve.proxy[i]:7.2f}"
            )
    for fitted, rule in zip(fits, ("d (alpha - beta d)", "d (alpha - beta log d)"), strict=True):
        if fitted is not None:
            lines.append(f"{fitted.form}: R = {rule}, {fitted}; highest at d = {fitted.peak:.2f}")
    return "\n".join(lines)


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    try:
        return run_lab(config)
    except (RunError, ValueError, FileNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
