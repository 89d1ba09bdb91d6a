"""All stages from random weights to the table, tiny, and in this process."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest

from experiments import lm_pipeline
from genai_jax.rl.stage_report import Stage, describe_stages, measure_stage
from genai_jax.training import parts

TINY = {
    "pretrain": "--steps 2 --batch-size 8 --evaluation-rows 8 --sample-tokens 0 --length 96 "
    "--model.num-layers 1 --model.embed-dim 16 --model.num-heads 2 --model.mlp-dim 32",
    "sft": "--steps 2 --batch-size 8 --evaluation-rows 8 --tasks.examples 40 --tasks.replies 10 "
    "--tasks.held-out 1 --length 96 --answer-tokens 8",
    "reward": "--steps 1 --batch-size 8 --evaluation-rows 8 --gold.preferences 16 "
    "--gold.held-out 8 --length 128",
    "ppo": "--steps 1 --rollouts.prompts 8 --rollouts.max-tokens 8 --passes.minibatches 1 "
    "--measured 4",
    "dpo": "--steps 1 --batch-size 8 --evaluation-rows 8 --gold.preferences 16 --gold.held-out 8",
    "grpo": "--steps 1 --rollouts.prompts 4 --rollouts.group 2 --rollouts.max-tokens 8 "
    "--passes.minibatches 1 --measured 4 --tasks.held-out 1",
}
MEASURE = "--measure.tasks 1 --measure.replies 4 --measure.functions 1 --measure.answer-tokens 8"


@pytest.fixture(scope="module")
def called():
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, called):
    """A pipeline whose stages run in this process."""
    workdir = tmp_path_factory.mktemp("pipeline") / "all"

    def call(command):
        called.append(command)
        module = importlib.import_module(f"experiments.{Path(command[1]).stem}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            return module.main()

    corpus = workdir.with_name("corpus")
    corpus.mkdir()
    for i in range(8):
        (corpus / f"{i}.txt").write_text(f"{i} plus 1 makes {i + 1}. " * 20)
    flags = [f"--{name}={more}" for name, more in TINY.items()]
    flags[0] += f" --data.path {corpus}/*.txt"  # the embedded sentences take a while to read
    words = ["lm_pipeline.py", "--workdir", str(workdir), "--cpu-devices", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "call_script", call)
        patch.setattr(sys, "argv", [*words, *flags, *MEASURE.split()])
        assert lm_pipeline.main() == 0
    return workdir


def test_every_stage_is_a_command_that_begins_with_the_one_before(finished, called):
    names = ["pretrain", "sft", "reward", "ppo", "dpo", "grpo"]
    assert [Path(command[command.index("--workdir") + 1]).name for command in called] == names
    for command, before in zip(called[1:], ["pretrain", *["sft"] * 4], strict=True):
        assert Path(command[command.index("--init") + 1]).name == before


def test_more_seeds_are_more_runs_of_ppo():
    commands = lm_pipeline.commands_of(lm_pipeline.PipelineConfig(seed=3, seeds=2))
    assert [*commands][3:5] == ["ppo", "ppo-1"]
    seeds = [commands[name][commands[name].index("--seed") + 1] for name in ("sft", "ppo", "ppo-1")]
    assert seeds == ["3", "3", "4"]


def test_the_table_has_a_row_a_stage(finished):
    text = (finished / "report.txt").read_text()
    for name in ("pretrain", "sft", "ppo", "dpo", "grpo"):
        assert sum(line.startswith(f"{name} ") for line in text.splitlines()) == 3
    assert "its ceiling:" in text and "by length alone:" in text


def test_fine_tuning_is_no_way_from_itself(finished):
    kept = json.loads((finished / "sft" / "samples" / "measured.json").read_text())
    assert kept["kl"] == 0.0 and kept["kl_error"] == 0.0
    assert set(kept["easy"]) == set(kept["hard"]) >= {"arithmetic", "lookup", "all"}


def test_what_was_measured_is_read_again(finished, monkeypatch):
    import genai_jax.rl.stage_report as room

    config = lm_pipeline.MeasureConfig(1, 4, 1, 8)
    folder = str(finished / "dpo")
    monkeypatch.setattr(room, "_measure", None)
    again = measure_stage(folder, str(finished / "sft"), config)
    kept = json.loads((finished / "dpo" / "samples" / "measured.json").read_text())
    assert (again.gold, again.kl) == (kept["gold"], kept["kl"])
    with pytest.raises(TypeError):  # of other functions nothing is kept: they would be measured
        measure_stage(folder, str(finished / "sft"), dataclasses.replace(config, functions=2))


def stage(gold, share=0.5):
    shares = {"arithmetic": share, "all": share}
    return Stage(shares, shares, gold, 0.1, 1.0, 0.2, 30.0, [(1, 0.25, 0.1, 0.4)])


def test_the_spread_of_seeds_is_beside_what_they_gain():
    stages = {"sft": stage(1.0), "ppo": stage(1.5), "ppo-1": stage(1.7), "ppo-2": stage(1.6)}
    said = lm_pipeline.describe_seeds(stages, 3)
    assert said == "PPO over sft, gold reward: +0.60, spread of 3 seeds 0.10 (+0.50, +0.70, +0.60)"


def test_numbers_stand_in_the_table():
    text = describe_stages({"sft": stage(1.234, 0.75)})
    assert "75.0%" in text and "+1.23 ± 0.10" in text and "@1 25% (10% to 40%)" in text


def test_a_stage_that_fails_ends_the_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "call_script", lambda command: 130)
    monkeypatch.setattr(sys, "argv", ["lm_pipeline.py", "--workdir", str(tmp_path)])
    assert lm_pipeline.main() == 130
    assert (
        "pretrain ended with 130; the same command again goes on there" in capsys.readouterr().err
    )
