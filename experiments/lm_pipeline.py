"""From random weights to an aligned model: pre-training, fine-tuning, reward model, PPO, DPO, GRPO.

Every stage is one of the other scripts, in a process of its own: the commands are printed, and can
be given by hand. The same command again goes on where it was stopped.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from genai_jax.command_line import parse_command_line
from genai_jax.rl.stage_report import MeasureConfig, Stage, describe_stages, measure_stage
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.parts import command_of, run_parts
from genai_jax.training.run_directory import RunError, read_run

_HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """All stages.

    Attributes:
        workdir: Folder of the runs of all stages, and of the report.
        seed: Of every stage.
        seeds: Runs of PPO, with the seeds `seed`, `seed + 1`, ...: their spread is reported.
        cpu_devices: On a CPU, number of devices that each stage makes of it; 0 is one a core.
        pretrain: More flags for lm_pretrain.py, with an equals sign: --pretrain="--steps 100".
        sft: More flags for lm_sft.py.
        reward: More flags for lm_reward.py.
        ppo: More flags for lm_ppo.py.
        dpo: More flags for lm_dpo.py.
        grpo: More flags for lm_grpo.py.
        measure: How much is measured of each stage.
    """

    workdir: str = "runs/pipeline"
    seed: int = 0
    seeds: int = 1
    cpu_devices: int = 0
    pretrain: str = ""
    sft: str = ""
    reward: str = ""
    ppo: str = ""
    dpo: str = ""
    grpo: str = ""
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.seeds < 1:
            raise ValueError(f"`seeds` must be at least 1; got {self.seeds}.")


PRESETS: dict[str, tuple[str, PipelineConfig]] = {
    "default": ("18 minutes on two cores", PipelineConfig()),
    "three-seeds": ("the same with three runs of PPO", PipelineConfig(seeds=3)),
}


def commands_of(config: PipelineConfig) -> dict[str, list[str]]:
    """Write the command of every stage, by its name."""
    at = Path(config.workdir)
    plan: dict[str, tuple[str, str, Mapping[str, object], str]] = {
        "pretrain": ("lm_pretrain.py", "tasks", {}, config.pretrain),
        "sft": ("lm_sft.py", "tasks", {"init": at / "pretrain"}, config.sft),
        "reward": ("lm_reward.py", "gold", {"init": at / "sft"}, config.reward),
    }
    for number in range(config.seeds):
        flags = {"init": at / "sft", "reward-model": at / "reward", "seed": config.seed + number}
        plan[ppo_name(number)] = ("lm_ppo.py", "adaptive", flags, config.ppo)
    plan["dpo"] = ("lm_dpo.py", "dpo", {"init": at / "sft"}, config.dpo)
    plan["grpo"] = ("lm_grpo.py", "grpo", {"init": at / "sft"}, config.grpo)
    common = {"seed": config.seed, "cpu-devices": config.cpu_devices}
    return {
        name: command_of(_HERE / script, preset, {"workdir": at / name, **common, **special}, more)
        for name, (script, preset, special, more) in plan.items()
    }


def ppo_name(number: int) -> str:
    """Name a run of PPO."""
    return "ppo" if number == 0 else f"ppo-{number}"


def run_pipeline(config: PipelineConfig) -> int:
    """Run every stage that is not finished, and report; returns the exit code."""
    code, seconds = run_parts(commands_of(config))
    if code:
        return code
    text = report(config)
    took = ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items())
    print(f"\n=== report\n{text}\n\ntook: {took}; in all {sum(seconds.values()):.0f} s")
    return 0


def report(config: PipelineConfig) -> str:
    """Measure all models, and write the table."""
    at = Path(config.workdir)
    names = ["pretrain", "sft", *map(ppo_name, range(config.seeds)), "dpo", "grpo"]
    stages: dict[str, Stage] = {}
    for name in names:
        stages[name] = measure_stage(str(at / name), str(at / "sft"), config.measure)
    lines = [describe_stages(stages)]
    lines.append(describe_divergence(at, stages))
    judged = at / "reward" / "samples" / "report.txt"
    lines.append("reward model\n" + judged.read_text(encoding="utf-8"))
    if config.seeds > 1:
        lines.append(describe_seeds(stages, config.seeds))
    text = "\n\n".join(lines)
    write_atomically(at / "report.txt", text + "\n")
    return text


def describe_divergence(at: Path, stages: Mapping[str, Stage]) -> str:
    """Say how far PPO went from fine-tuning, beside how far it was to go."""
    lines = []
    for name in (name for name in stages if name.startswith("ppo")):
        kl = read_run(str(at / name))[0]["kl"]
        aim = f"target {kl['target']:g}" if kl["adaptive"] else f"at beta {kl['beta']:g}"
        lines.append(f"{name}: {stages[name].kl:.2f} nats a reply from sft, {aim}")
    return "\n".join(lines)


def describe_seeds(stages: Mapping[str, Stage], seeds: int) -> str:
    """Say by how much PPO's gold reward exceeds that of fine-tuning, beside its own spread."""
    gains = [stages[ppo_name(n)].gold - stages["sft"].gold for n in range(seeds)]
    mean = sum(gains) / seeds
    spread = (sum((gain - mean) ** 2 for gain in gains) / (seeds - 1)) ** 0.5
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return f"PPO over sft, gold reward: {mean:+.2f}, spread of {seeds} seeds {spread:.2f} ({each})"


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    try:
        return run_pipeline(config)
    except (RunError, ValueError, FileNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
