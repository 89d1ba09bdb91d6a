"""Post-training as its users run it: through `main`, on tiny sizes, on eight devices."""

import io
import json
import os
import shutil
import signal
import sys
import threading

import jax
import numpy as np
import pytest

from experiments import lm_dpo, lm_grpo, lm_ppo, lm_reward, lm_sample, lm_sft
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.evaluation.text_runs import load_text_model
from genai_jax.rl import experience, policy_run
from genai_jax.training.checkpoints import load_step, read_manifest
from genai_jax.training.json_lines import read_json_lines

STEPS = 4
SHAPE = (
    *("--model.num-layers", "1", "--model.embed-dim", "16", "--model.num-heads", "2"),
    *("--model.mlp-dim", "32", "--model.max-length", "128", "--model.init-std", "0.3"),
)
COMMON = (
    *("--steps", str(STEPS), "--evaluation-rows", "8", "--evaluate-every", "0"),
    *("--save-every", "2", "--log-every", "1"),
)
FLAT = ("--schedule.warmup-steps", "0", "--schedule.peak", "0.01")
GOLD = ("--gold.preferences", "16", "--gold.held-out", "8", "--batch-size", "8")
TASKS = (
    *("--tasks.families", "sorting", "--tasks.held-out", "2", "--tasks.examples", "40"),
    *("--tasks.replies", "20"),
)
ROLLOUTS = ("--rollouts.max-tokens", "6", "--measured", "5")  # no number of devices divides it

# Duplicates, an empty answer, nothing to learn, and more than a row.
DEMONSTRATIONS = [
    *({"prompt": f"Say {word}.", "completion": word} for word in ("a", "bc", "d", "ef", "g") * 2),
    {"prompt": "Say nothing.", "completion": ""},
    {"messages": [{"role": "user", "content": "Is anybody there?"}]},
    {"prompt": "Say much.", "completion": "much " * 100},
]
PROMPTS = [{"prompt": f"Say {word}.", "answer": word} for word in ("a", "b", "c", "d", "a", "a")]

RUNS = {
    "sft": (lm_sft, (*SHAPE, *TASKS, "--batch-size", "8", "--answer-tokens", "6")),
    "lora": (
        lm_sft,
        (
            *("lora", "--init", "{sft}", "--data.path", "{demonstrations}", "--length", "64"),
            *("--batch-size", "8", "--lora.rank", "2", *FLAT, "--ema-decay", "0.5"),
        ),
    ),
    "reward": (lm_reward, (*GOLD, *FLAT, "--init", "{sft}")),
    "dpo": (lm_dpo, (*GOLD, *FLAT, "--init", "{first}")),
    "live": (lm_dpo, (*GOLD, *FLAT, "--init", "{sft}", "--preference.reference", "live")),
    "kto": (
        lm_dpo,
        (
            *("kto", *GOLD, *FLAT, "--init", "{sft}", "--lora.rank", "2"),
            *("--kto.reference", "adapter_off"),
        ),
    ),
    "ppo": (
        lm_ppo,
        (
            *("--init", "{sft}", "--reward-model", "{reward}", "--rollouts.prompts", "16"),
            *(*ROLLOUTS, *FLAT, "--kl.adaptive", "--kl.target", "1e-3", "--kl.horizon", "100"),
            "--normalise-rewards",
        ),
    ),
    "grpo": (
        lm_grpo,
        (
            *("--init", "{sft}", "--ask", "data", "--data", "{prompts}", "--lora.rank", "2"),
            *("--rollouts.prompts", "4", "--rollouts.group", "4", *ROLLOUTS, *FLAT),
            *("--rewards.per-token", "0.1", "--passes.minibatches", "1"),
        ),
    ),
}


class Chain:
    """Runs that nothing disturbed, each made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder
        for name, records in (("demonstrations", DEMONSTRATIONS), ("prompts", PROMPTS)):
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{name}.jsonl").write_text(lines)

    def __call__(self, name):
        path = self.folder / name
        if name == "first":  # of dpo, gone when that goes on
            return path if path.exists() else shutil.copytree(self("sft"), path)
        if not path.exists():
            assert self.start(name, path) == 0, name
            if name == "dpo":
                shutil.rmtree(self.folder / "first")
        return path

    def flags(self, name, workdir):
        found = []
        for flag in (*RUNS[name][1], *COMMON, "--workdir", str(workdir)):
            if flag in ("{demonstrations}", "{prompts}"):
                flag = str(self.folder / f"{flag[1:-1]}.jsonl")
            elif flag == "{first}":
                flag = str(self.folder / "first")
            elif flag.startswith("{"):
                flag = str(self(flag[1:-1]))
            found.append(flag)
        return found

    def start(self, name, workdir, *flags):
        if name == "dpo" and not (workdir / "config.json").exists():
            self("first")
        with pytest.MonkeyPatch.context() as patch:
            module = RUNS[name][0]
            patch.setattr(sys, "argv", [module.__name__, *self.flags(name, workdir), *flags])
            return module.main()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return Chain(tmp_path_factory.mktemp("runs"))


def arrays_of(run, step=STEPS):
    """Shape, dtype and checksum of all that a checkpoint holds, by name."""
    return read_manifest(run / "checkpoints" / str(step))["arrays"]


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert arrays_of(one) == arrays_of(other)


def records(run, name):
    return [r[name] for r in read_json_lines(run / "metrics.jsonl") if name in r]


@pytest.mark.parametrize("name", ["lora", "reward", "dpo", "live", "kto"])
def test_a_run_goes_on_as_if_it_had_not_been_killed(chain, tmp_path, name, capsys):
    finished = chain(name)
    losses = records(finished, "train/loss")
    assert len(losses) == STEPS and len(set(losses)) == STEPS
    run = shutil.copytree(finished, tmp_path / name)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    capsys.readouterr()
    assert chain.start(name, run) == 0
    assert f"resuming {run} after step 2" in capsys.readouterr().out.replace("\n", " ")
    assert_same_run(run, finished)
    if name == "reward":
        scales = [(x / "reward_scale.json").read_bytes() for x in (run, finished)]
        assert scales[0] == scales[1]
    held = {n.split("/")[0] for n in arrays_of(finished)}
    assert ("context" in held) == (name == "live")
    assert (name == "dpo") == (not (chain.folder / "first").exists() and name == "dpo")


def test_ctrl_c_while_answers_are_drawn_loses_nothing(chain, tmp_path, monkeypatch, capsys):
    finished, draw = chain("ppo"), experience.draw_rollouts

    def interrupted(*arguments, step, check, **options):
        def stopping():
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            check()

        return draw(*arguments, step=step, check=stopping, **options)

    with monkeypatch.context() as patch:
        patch.setattr(experience, "draw_rollouts", interrupted)
        assert chain.start("ppo", tmp_path / "ppo") == 130
    assert "stopped; saved at step 3" in capsys.readouterr().out
    assert chain.start("ppo", tmp_path / "ppo") == 0
    assert_same_run(tmp_path / "ppo", finished)


def test_a_checkpoint_of_ppo_has_all_that_it_goes_on_from(chain):
    held = arrays_of(chain("ppo"))
    for part in (
        *("model/policy/embedding/table", "model/critic/score/kernel", "context/beta"),
        *("context/reference/embedding/table", "context/reward_moments/mean"),
    ):
        assert any(name.startswith(part) for name in held), part
    assert any(name.startswith("opt_state/") for name in held)
    context = load_step(
        chain("ppo") / "checkpoints",
        STEPS,
        {"context": {"beta": np.float32(0)}},
    )["context"]
    assert float(context["beta"]) != np.float32(0.05)
    # What is held fixed is what the run began with; what trains has moved away from it.
    before, after = arrays_of(chain("sft")), held
    names = [name.removeprefix("model/") for name in before if name.startswith("model/")]
    for name in names:
        assert after[f"context/reference/{name}"] == before[f"model/{name}"]
        assert after[f"model/policy/{name}"] != before[f"model/{name}"]


def test_what_is_reported_of_a_step_of_ppo(chain):
    run = chain("ppo")
    for name in ("kl", "rollout_reward", "rollout_kl", "value", "entropy", "rollout_ended"):
        assert len(records(run, f"train/{name}")) == STEPS
    assert records(run, "train/first_log_ratio")[0] < 1e-4
    assert records(run, "train/stale") == [0.0] * STEPS
    assert records(run, "train/rollout_excluded") == [0.0] * STEPS
    assert records(run, "train/rollout_kl")[0] == pytest.approx(0, abs=1e-5)
    assert len(records(run, "val/gold")) == len(records(run, "val/reward")) == 1
    assert {"rollout_seconds", "reward_seconds", "scoring_seconds", "gap"} <= {
        name for record in read_json_lines(run / "timing.jsonl") for name in record
    }


def test_examples_that_teach_nothing_are_counted(chain, tmp_path, capsys):
    code = chain.start("lora", tmp_path / "run", "--length", "500")
    assert code == 2  # the context is shorter
    assert "Give --length 128" in capsys.readouterr().err
    assert chain.start("lora", tmp_path / "run", "--steps", "0") == 2
    summary = chain.start  # told by the run itself, below
    assert summary
    shown = lm_sft.load_examples(
        lm_sft.ChatDataConfig(path=str(chain.folder / "demonstrations.jsonl")),
        lm_sft.fresh_start(lm_sft.TransformerConfig()).renderer,
        length=64,
        seed=0,
    ).summary
    assert "empty" in shown or "no turn" in shown


@pytest.fixture
def chat(run, monkeypatch):
    def call(folder, *flags):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        return run(lm_sample, "--chat", "--model", str(folder), "--max-tokens", "4", *flags)

    return call


@pytest.mark.parametrize("name", ["lora", "ppo"])
def test_what_was_trained_can_be_talked_with(chain, chat, name):
    code, out, err = chat(chain(name))
    assert code == 0, err
    assert out and "step 4" in err


def test_all_policies_load(chain):
    for name in ("sft", "lora", "dpo", "kto", "grpo", "ppo"):
        found = load_text_model(str(chain(name)))
        tokens = np.arange(8, dtype=np.int32)[None]
        assert np.isfinite(found.model(tokens)).all()
        assert "<|assistant|>" in found.chat_template().source
    assert not any(x.ndim == 0 for x in jax.tree.leaves(found.model))


def test_a_reward_model_is_no_company(chain, chat):
    code, _, err = chat(chain("reward"))
    assert code == 2 and "a model must write to be sampled from" in err
