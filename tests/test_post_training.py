"""Post-training as its users run it: through `main`, on tiny sizes, on eight devices."""

import io
import json
import os
import shutil
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lm_dpo, lm_grpo, lm_ppo, lm_reward, lm_sample, lm_sft
from genai_jax.data.plain_chat import CHAT_SPECIALS
from genai_jax.data.preference_data import PreferenceDataConfig, load_preferences
from genai_jax.data.tasks.gold_sets import GoldConfig, gold_sides
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.evaluation.reward_runs import load_reward_run, make_reward_reader
from genai_jax.evaluation.text_runs import load_text_model
from genai_jax.parallel.mesh import make_mesh
from genai_jax.rl import experience, policy_run
from genai_jax.training.checkpoints import read_manifest
from genai_jax.training.json_lines import read_json_lines
from genai_jax.training.run_directory import open_run

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
    "reward": (lm_reward, (*GOLD, *FLAT, "--init", "{sft}", "--ema-decay", "0.5")),
    "dpo": (lm_dpo, (*GOLD, *FLAT, "--init", "{first}")),
    "live": (lm_dpo, (*GOLD, *FLAT, "--init", "{ppo}", "--preference.reference", "live")),
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
            *("--init", "{lora}", "--ask", "data", "--data", "{prompts}", "--lora.rank", "2"),
            *("--rollouts.prompts", "4", "--rollouts.group", "4", *ROLLOUTS, *FLAT),
            *("--model.layers", "scanned"),
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
    # What it began with is no longer needed: the reference's log-probabilities are kept too.
    assert name != "dpo" or not (chain.folder / "first").exists()


def test_ctrl_c_while_answers_are_drawn_loses_nothing(chain, tmp_path, monkeypatch, capsys):
    finished, draw = chain("ppo"), experience.draw_rollouts

    def interrupted(*arguments, step, check, **options):
        first = threading.Lock()

        def stopping():  # devices draw in threads, and the main one hears of the signal
            if step == 3:
                if first.acquire(blocking=False):
                    os.kill(os.getpid(), signal.SIGINT)
                for _ in range(500):
                    check()
                    time.sleep(0.01)
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
    saved = [arrays_of(chain("ppo"), step) for step in (2, STEPS)]
    for name in ("context/beta", "context/reward_moments/mean"):
        assert saved[0][name] != saved[1][name]
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
        tokens = jnp.arange(8, dtype=jnp.int32)[None]
        assert jnp.isfinite(found.model(tokens)).all()
        assert "<|assistant|>" in found.chat_template().source


def test_a_reward_model_is_no_company(chain, chat):
    code, _, err = chat(chain("reward"))
    assert code == 2 and "a model must write to be sampled from" in err


class Rewards:
    """Replaces the reward of a run by one that can fail; knows at which step it is asked."""

    def __init__(self, monkeypatch, reward):
        self.step = -1
        draw, make = experience.draw_rollouts, policy_run.make_reward

        def drawn(*arguments, step, **options):
            self.step = step
            return draw(*arguments, step=step, **options)

        def made(*arguments):
            true = make(*arguments)
            return lambda samples: reward(self, true, samples)

        monkeypatch.setattr(experience, "draw_rollouts", drawn)
        monkeypatch.setattr(policy_run, "make_reward", made)


def test_answers_without_a_reward_are_left_out_and_counted(chain, tmp_path, monkeypatch, capsys):
    forever = threading.Event()

    def reward(self, true, samples):
        if self.step == 0 and any(sample.answer_ids[0] % 2 for sample in samples):
            raise ZeroDivisionError("of odd answers")
        if self.step == 1:  # the evaluation after step 2 is of step 2
            return [(np.nan, np.inf, -np.inf)[i % 3] for i in range(len(samples))]
        if self.step == 3:
            forever.wait()
        return true(samples)

    run = tmp_path / "grpo"
    with monkeypatch.context() as patch:
        Rewards(patch, reward)
        try:
            code = chain.start("grpo", run, "--rewarding.seconds", "0.5", "--save-every", "1")
        finally:
            forever.set()
    assert code == 0
    err = "".join(capsys.readouterr())
    for fault in ("ZeroDivisionError: of odd answers", "must be a finite number", "longer than"):
        assert err.count(fault) == 1, fault
    excluded = records(run, "train/rollout_excluded")
    assert 0 < excluded[0] < 1 and excluded[1:] == [1.0, 0.0, 1.0]
    # Of nothing there is no loss, and nothing is spoilt by it.
    losses = records(run, "train/loss")
    assert [loss is None for loss in losses] == [False, True, False, True]
    assert records(run, "train/grad_norm")[1] == records(run, "train/grad_norm")[3] == 0
    assert jnp.isfinite(load_text_model(str(run)).model(jnp.zeros((1, 4), jnp.int32))).all()


def test_a_step_of_ppo_without_a_reward_changes_nothing_but_its_number(
    chain, tmp_path, monkeypatch
):
    run = tmp_path / "ppo"
    with monkeypatch.context() as patch:
        Rewards(patch, lambda self, true, samples: [np.nan] * len(samples))
        assert chain.start("ppo", run, "--steps", "2", "--save-every", "1") == 0
    one, two = (arrays_of(run, step) for step in (1, 2))
    start = arrays_of(chain("sft"))
    for name in start:
        if name.startswith("model/"):
            policy = name.replace("model/", "model/policy/", 1)
            assert start[name] == one[policy] == two[policy]
    assert one["context/reward_moments/mean"] == two["context/reward_moments/mean"]
    assert records(run, "val/reward") == [None]


def test_a_run_can_stop_at_a_reward_that_fails_and_go_on_once_it_is_mended(
    chain, tmp_path, monkeypatch, capsys
):
    def reward(self, true, samples):
        if self.step == 3:
            raise OSError("the grader is away")
        return true(samples)

    finished, run, flags = chain("grpo"), tmp_path / "run", ("--rewarding.on-failure", "stop")
    with monkeypatch.context() as patch:
        Rewards(patch, reward)
        assert chain.start("grpo", run, *flags) == 1
    err = capsys.readouterr().err
    assert "STOPPED: 16 of 16 answers could not be rewarded: it raised OSError" in err
    assert "All steps up to 3 are saved." in err
    assert chain.start("grpo", run, *flags) == 0
    assert_same_run(run, finished)


def test_rows_that_other_weights_wrote_stop_the_run(chain, tmp_path, monkeypatch, capsys):
    draw = experience.draw_rollouts

    def stale(policy, *arguments, step, **options):
        if step == 1:
            policy = jax.tree.map(lambda x: 1.05 * x, policy)
        return draw(policy, *arguments, step=step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(experience, "draw_rollouts", stale)
        assert chain.start("grpo", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "STOPPED: what is drawn must have the probabilities that training computes" in err
    assert "All steps up to 1 are saved." in err
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_a_prompt_that_leaves_no_room_stops_the_run_and_loses_nothing(chain, tmp_path, capsys):
    """Of the embedded tasks there is no end, so that none can be looked at before."""
    flags = ("--length", "32", "--rollouts.max-tokens", "24", "--rollouts.prompts", "8")
    flags += ("--passes.minibatches", "1")
    words = ["--init", str(chain("sft")), *COMMON, *TASKS[:2], *flags, "--measured", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lm_ppo.py", "tasks", *words, "--workdir", f"{tmp_path}/run"])
        assert lm_ppo.main() == 1
    assert "a row must hold a prompt and its answer" in capsys.readouterr().err


REFUSED = {
    "no model": (lm_reward, ("--init", ""), "post-training begins with a model; got none"),
    "no model to align": (lm_dpo, (), "post-training begins with a model; got none"),
    "no policy": (lm_grpo, (), "post-training begins with a model; got none"),
    "no run": (lm_sft, ("--init", "nowhere"), "a run has a config.json; there is none in nowhere"),
    "no run to align": (lm_dpo, ("--init", "nowhere"), "there is none in nowhere"),
    "no run of a policy": (lm_grpo, ("--init", "nowhere"), "there is none in nowhere"),
    "no judge": (lm_ppo, ("--init", "{sft}"), "a weight on the reward model needs one; got none"),
    "no such judge": (
        lm_ppo,
        ("--init", "{sft}", "--reward-model", "nowhere"),
        "there is none in nowhere",
    ),
    "a policy as a judge": (
        lm_ppo,
        ("--init", "{sft}", "--reward-model", "{sft}", "--length", "128"),
        "a reward model must come from a run of lm_reward.py",
    ),
    "a reward model as a policy": (
        lm_grpo,
        ("--init", "{reward}", *ROLLOUTS, "--measured", "8"),
        "is a reward model",
    ),
    "itself": (lm_sft, ("--init", "{sft}", "--workdir", "{sft}", "--overwrite"), "its own folder"),
    "its judge": (
        lm_ppo,
        ("--init", "{sft}", "--reward-model", "{reward}", "--workdir", "{reward}", "--overwrite"),
        "its own folder",
    ),
    "length": (lm_sft, ("--init", "{sft}", "--length", "256"), "Give --length 128"),
    "length of rollouts": (lm_grpo, ("--init", "{sft}", "--length", "256"), "Give --length 128"),
    "answers fill rows": (
        lm_grpo,
        ("--init", "{sft}", "--rollouts.max-tokens", "128"),
        "a row must hold a prompt and its answer; got `length` 112",
    ),
    "dropout of a policy": (
        lm_ppo,
        ("--init", "{sft}", "--model.dropout", "0.1"),
        "the ratio of two policies must be without dropout; got 0.1",
    ),
    "dropout beside a reference": (
        lm_dpo,
        ("--init", "{sft}", "--model.attention-dropout", "0.1"),
        "a log-ratio to the reference must be without dropout",
    ),
    "adapter off without one": (
        lm_dpo,
        ("--init", "{sft}", "--preference.reference", "adapter_off"),
        "needs an adapter; got --lora.rank 0",
    ),
    "groups in PPO": (
        lm_ppo,
        ("--advantages.estimator", "group", "--advantages.baseline", "none"),
        "PPO has a critic; for groups take lm_grpo.py",
    ),
    "a critic in groups": (
        lm_grpo,
        ("--advantages.estimator", "gae"),
        "groups need no critic; for gae take lm_ppo.py",
    ),
    "nothing measured": (lm_grpo, ("--measured", "0"), "`measured` must be at least 1; got 0"),
    "nothing earned": (lm_grpo, ("--rewards.grade", "0"), "an answer must earn something"),
    "data of one's own": (lm_grpo, ("--ask", "data"), "need both --ask data and --data"),
    "family": (lm_sft, ("--tasks.families", "chess"), "`families` must be among arithmetic"),
    "preset": (lm_dpo, ("ip0",), "There is no preset 'ip0'. Did you mean ipo?"),
    "flag": (lm_ppo, ("--rollouts.promts", "3"), "--rollouts.prompts"),
    "batch": (
        lm_grpo,
        ("--init", "{sft}", "--rollouts.prompts", "3", "--rollouts.group", "3"),
        "got 3 × 3 answers, 8 devices, 1 microbatches and 2 minibatches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_words(chain, run, tmp_path, case):
    module, flags, words = REFUSED[case]
    flags = [str(chain(flag[1:-1])) if flag.startswith("{") else flag for flag in flags]
    if "--workdir" not in flags:
        flags += ["--workdir", str(tmp_path / "run")]
    kept = arrays_of(chain("sft")) if "--overwrite" in flags else None
    code, out, err = run(module, *flags)
    told = " ".join((out + err).replace("│", " ").split())
    assert code == 2 and words in told, told
    assert kept is None or kept == arrays_of(chain("sft"))


FILES = {
    "empty": (lm_sft, "--data.path", "", "must hold a record; got none"),
    "no preference": (lm_dpo, "--data.path", "", "must hold a record; got none"),
    "no prompt": (lm_grpo, "--data", "", "at least two different prompts"),
    "one prompt": (lm_sft, "--data.path", {"prompt": "a", "completion": "b"}, "at least two"),
    "one prompt to ask": (lm_grpo, "--data", {"prompt": "a", "answer": "b"}, "at least two"),
    "one preference": (
        lm_reward,
        "--data.path",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "at least two different prompts",
    ),
    "long": (
        lm_grpo,
        "--data",
        {"prompt": "a" * 200, "answer": "b"},
        "a prompt must leave room for an answer; 1 of 3 have more than 64 tokens, the longest 20",
    ),
    "no answer": (lm_grpo, "--data", {"prompt": "d"}, "needs the right `answer` of every prompt"),
    "no JSON": (lm_sft, "--data.path", "{", "line 1"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_learnt_from_are_refused_in_words(chain, run, tmp_path, case):
    module, flag, content, words = FILES[case]
    if isinstance(content, dict):
        others = PROMPTS[:2] if case in ("long", "no answer") else [content]
        content = "".join(json.dumps(record) + "\n" for record in (content, *others))
    (tmp_path / "data.jsonl").write_text(content)
    ask = ("--ask", "data") if module is lm_grpo else ()
    where = ("--init", str(chain("sft")), "--workdir", str(tmp_path / "run"))
    code, _, err = run(module, *ask, flag, str(tmp_path / "data.jsonl"), *where)
    assert code == 2 and words in err, err


def test_a_reward_model_that_reads_otherwise_is_refused(chain, run, tmp_path):
    for name, what in (("chat", "chat template"), ("tokenizer", "tokenizer")):
        other = shutil.copytree(chain("reward"), tmp_path / name)
        if name == "chat":
            template = other / "chat" / "chat_template.jinja"
            template.write_text(template.read_text() + "\n")
        else:
            shutil.rmtree(other / "tokenizer")
            ByteTokenizer(specials=(*CHAT_SPECIALS, "<|more|>")).save(other / "tokenizer")
        flags = ("--init", str(chain("sft")), "--reward-model", str(other), *ROLLOUTS, *COMMON)
        code, _, err = run(lm_ppo, *flags, "--workdir", str(tmp_path / f"ppo-{name}"))
        assert code == 2 and f"must read with the {what} of the policy" in err, err


@pytest.mark.parametrize(
    ("name", "kept"), [("dpo", "reference.npz"), ("reward", "reward_scale.json")]
)
def test_overwriting_leaves_nothing_of_the_run_before(chain, tmp_path, name, kept):
    """Such as the log-probabilities of another reference."""
    run = shutil.copytree(chain(name), tmp_path / "run")
    assert (run / kept).exists()
    with open_run(run, {"steps": 1}, overwrite=True):
        assert sorted(path.name for path in run.iterdir()) == ["config.json", "lock"]


def test_a_policy_begins_as_the_reference_that_was_scored(chain, tmp_path, run, monkeypatch):
    begun, fit = shutil.copytree(chain("sft"), tmp_path / "begun"), lm_dpo.fit
    later = chain("live")

    def after_a_while(*arguments, **options):
        shutil.rmtree(begun)
        shutil.copytree(later, begun)  # it has gone on learning
        return fit(*arguments, **options)

    monkeypatch.setattr(lm_dpo, "fit", after_a_while)
    flags = ("--init", str(begun), *GOLD, *COMMON, "--workdir", str(tmp_path / "run"))
    code, _, err = run(lm_dpo, *flags)
    assert code == 2 and "the init changed" in err, err


def test_rewards_have_the_mean_0_and_the_deviation_1_of_the_training_answers(chain):
    found = load_reward_run(str(chain("reward")))
    assert "step 4" in found.about
    data = load_preferences(
        PreferenceDataConfig(),
        found.renderer,
        length=128,
        seed=0,
        preferences=gold_sides(GoldConfig(preferences=16, held_out=8, answers=4), 0),
    )
    rewards = make_reward_reader(make_mesh(devices=jax.devices()[:1]), data.train.in_order(), 8)(
        found.model
    )
    assert rewards.shape == (16, 4)
    assert rewards.mean() == pytest.approx(0, abs=1e-4) and rewards.std() == pytest.approx(1, 1e-4)


def test_the_same_command_again_has_nothing_to_do(chain, capsys):
    for name in ("reward", "ppo"):
        before = arrays_of(chain(name)), (chain(name) / "metrics.jsonl").read_bytes()
        capsys.readouterr()
        assert chain.start(name, chain(name)) == 0
        assert "is finished: 4 steps. Nothing to do." in capsys.readouterr().out
        assert before == (arrays_of(chain(name)), (chain(name) / "metrics.jsonl").read_bytes())
