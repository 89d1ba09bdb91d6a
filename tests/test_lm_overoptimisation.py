"""The over-optimisation lab: its parts are valid commands, and its curves say what was measured."""

import json
import sys

import numpy as np
import pytest

from experiments import lm_grpo, lm_overoptimisation, lm_reward, lm_sft
from experiments.lm_overoptimisation import LabConfig, Scores, best_of_n_curve, learnt_curve
from genai_jax.command_line import parse_command_line
from genai_jax.rl.best_of_n import kl_bound
from genai_jax.rl.overoptimisation import best_of_n_estimates
from genai_jax.training import parts
from genai_jax.training.json_lines import read_json_lines

SCRIPTS = {"lm_sft.py": lm_sft, "lm_reward.py": lm_reward, "lm_grpo.py": lm_grpo}
TINY_MODEL = "--model.num-layers 1 --model.embed-dim 16 --model.num-heads 2 --model.mlp-dim 32"
TINY = (
    *("--demonstrations", "64", "--preferences", "24", "--prompts", "8", "--answers", "8"),
    *("--betas", "0.5", "--steps", "4", "--measure-every", "1", "--answer-tokens", "6"),
    *("--learning-rate", "0.01", "--length", "96"),
    f"--policy={TINY_MODEL} --steps 2 --data.validation-fraction 0.3 --evaluation-rows 8",
    "--proxy=--steps 2 --gold.held-out 16 --evaluation-rows 8 --batch-size 8",
    "--learning=--rollouts.prompts 4",
)


def called_here(command):
    """Run the script of a command in this process."""
    script, *words = command[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words])
        return SCRIPTS[script.rsplit("/", 1)[-1]].main()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Run the lab; gives its folder, the exit code, and what to run it again with."""
    workdir = tmp_path_factory.mktemp("runs") / "lab"

    def call(*flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "call_script", called_here)
            patch.setattr(sys, "argv", ["lab", "--workdir", str(workdir), *TINY, *flags])
            return lm_overoptimisation.main()

    return workdir, call(), call


def test_a_lab_leaves_what_it_promises(lab):
    workdir, code, _ = lab
    assert code == 0
    assert (workdir / "overoptimisation.png").read_bytes().startswith(b"\x89PNG")
    assert "best of n: R = d (alpha" in (workdir / "report.txt").read_text()
    kept = json.loads((workdir / "curves.json").read_text())
    assert list(kept["points"]) == ["best of n", "beta 0.5"]
    assert kept["points"]["best of n"]["kl"] == [kl_bound(n) for n in (1, 2, 4, 8)]
    lines = read_json_lines(workdir / "beta_0.5" / "metrics.jsonl")
    measured = [line["val/kl"] for line in lines if "val/kl" in line]
    assert kept["points"]["beta 0.5"]["kl"] == measured and len(measured) == 4


def test_the_same_command_again_draws_no_answer(lab, monkeypatch):
    workdir, _, again = lab
    before = (workdir / "curves.json").read_bytes()
    monkeypatch.setattr(lm_overoptimisation, "draw_rollouts", None)
    assert again() == 0
    assert (workdir / "curves.json").read_bytes() == before


def test_the_best_of_one_is_where_the_curve_begins():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(40, 16))
    proxy = 3 * gold + rng.normal(size=gold.shape) + 5
    curve = best_of_n_curve(Scores(proxy, gold))
    assert (curve.kl[0], curve.gold[0], curve.proxy[0]) == pytest.approx((0, 0, 0), abs=1e-12)
    assert len(curve.kl) == 5 and np.all(np.diff(curve.proxy) > 0)
    highest = best_of_n_estimates(proxy, gold, 16).mean() - gold.mean()
    assert curve.gold[-1] == pytest.approx(highest)
    # In units of the gold reward: a proxy that is one on another scale is the same curve.
    same = best_of_n_curve(Scores(7 * gold - 2, gold))
    assert same.proxy == pytest.approx(same.gold)


def test_a_proxy_that_says_the_same_of_all_is_shown_as_it_is():
    """As of a policy that ends no answer."""
    gold = np.arange(16.0).reshape(2, 8)
    curve = best_of_n_curve(Scores(np.full((2, 8), -3.0), gold))
    assert not curve.proxy.any() and curve.gold == pytest.approx(np.zeros(4))


def test_a_learnt_curve_is_read_from_its_run(tmp_path):
    config = LabConfig(workdir=str(tmp_path))
    lines = [
        {"step": 1, "train/loss": 0.5},
        {"step": 5, "val/kl": 0.5, "val/gold": 1.5, "val/reward": 4.0},
        {"step": 10, "val/kl": 2.0, "val/gold": 1.0, "val/reward": 6.0},
    ]
    (tmp_path / "beta_0.1").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "beta_0.1" / "metrics.jsonl").write_text(text)
    scores = Scores(np.array([[1.0, 5.0]]), np.array([[0.0, 1.0]]))
    curve = learnt_curve(config, 0.1, scores)
    assert curve.kl.tolist() == [0.5, 2.0] and curve.gold.tolist() == [1.0, 0.5]
    assert curve.proxy == pytest.approx(np.array([0.25, 0.75]))


def test_the_commands_of_the_defaults_are_valid():
    """Each with its script's own options, so that no flag has got another name."""
    parsed = {}
    for name, command in lm_overoptimisation.commands_of(LabConfig()).items():
        module = SCRIPTS[command[1].rsplit("/", 1)[-1]]
        parsed[name] = parse_command_line(
            module.PRESETS, description="", arguments=[*map(str, command[2:])]
        )
    assert list(parsed) == ["policy", "proxy", "beta_0", "beta_0.1"]
    assert parsed["proxy"].init == parsed["beta_0"].init == parsed["policy"].workdir
    assert parsed["beta_0.1"].reward_model == parsed["proxy"].workdir
    assert (parsed["beta_0"].kl.beta, parsed["beta_0.1"].kl.beta) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"answers": 4}, "answers"),
        ({"betas": ()}, "betas"),
        ({"betas": (0.1, 0.1)}, "betas"),
        ({"steps": 9}, "measure_every"),
        ({"prompts": 0}, "prompts"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, rule):
    with pytest.raises(ValueError, match=rule):
        LabConfig(**fields)
