# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Align a language model
#
# From raw text to an aligned policy, on a task so small that nothing has to be guessed: strings of
# at most three letters out of `!`, `a` and `h`. There are 40 of them, so that a model's *whole*
# distribution is one picture, every expectation is a sum, and each method can be held to the policy
# that mathematics says it must reach. Runs on a TPU, a GPU or a CPU; about a minute on two CPU
# cores.
#
# `colab/train_a_language_model.ipynb` explains the training step. Every step below is a call into
# the library, and wherever an answer is known, an `assert` checks it.

# %%
# Where this notebook was opened without the repository (as in Colab): its Git address.
REPOSITORY = ""  # @param {type:"string"}

import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("genai_jax") is None:
    here = [Path.cwd(), *Path.cwd().parents]
    clone = next((folder for folder in here if (folder / "genai_jax").is_dir()), None)
    if clone is None:
        if not REPOSITORY:
            raise SystemExit("Write the repository's address into REPOSITORY and run this again.")
        clone = Path("genai_jax_repository")
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(clone)], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "-e", str(clone)]
    subprocess.run(install, check=True)
    sys.path.insert(0, str(clone.resolve()))  # seen by this process, which is running already


# %%
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#BBBBBB"
random = np.random.default_rng(0)

# %% [markdown]
# ## The task
# A text begins with the token `end` and ends with it, but for strings of three letters: nobody asks
# for a fourth. So the probabilities of the 40 strings sum to one, whatever the model. $\log\pi(y)$
# is the sum over its counted tokens, from the one function that training, scoring and rollouts
# share.

# %%
from genai_jax.data.answer_rows import AnsweredPrompt, WholeAnswerRows
from genai_jax.data.tokenizers import CharacterTokenizer
from genai_jax.models import lm
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.token_log_probs import sum_log_probs
from genai_jax.parallel.mesh import make_mesh

LONGEST = 3
tokenizer = CharacterTokenizer("!ah")
END = tokenizer.eot_id
PROMPT = np.array([END], np.int32)
STRINGS = ["".join(s) for n in range(LONGEST + 1) for s in itertools.product("ah!", repeat=n)]


def answer_of(string):
    """Its ids, and the end where it is not cut."""
    end = [END] if len(string) < LONGEST else []
    return np.concatenate([tokenizer.encode(string), end]).astype(np.int32)


def rows_of(answers, **more):
    """Rows of K answers each, with the prompt before each: tokens, targets, loss_mask [B, K, T]."""
    asked = [AnsweredPrompt(PROMPT, tuple(map(answer_of, strings))) for strings in answers]
    rows = WholeAnswerRows(asked, length=1 + LONGEST, num_answers=len(answers[0]), columns=more)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


mesh = make_mesh(devices=jax.devices()[:1])  # more than enough
config = TransformerConfig(
    vocab_size=tokenizer.vocab_size,
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    mlp_dim=64,
    max_length=32,
    init_std=0.1,
)
EVERY = rows_of([[string] for string in STRINGS])
log_probs_of = jax.jit(sum_log_probs)


def distribution(model):
    """The probability of every string."""
    return np.exp(np.asarray(log_probs_of(model, EVERY), np.float64)[:, 0])


untrained = lm.LanguageModel(config, jax.random.key(0))
assert np.isclose(distribution(untrained).sum(), 1, atol=1e-5)
print(f"{len(STRINGS)} strings, {lm.count_parameters(config):,} parameters")


def draw_bars(*panels, same_scale=True):
    """Distributions below each other: bars, and points where something is known.

    Panels are (title, probabilities, colour), and where there are points what they are, and these.
    """
    _, axes = plt.subplots(
        len(panels),
        1,
        figsize=(12, 0.8 + 1.5 * len(panels)),
        sharex=True,
        sharey=same_scale,
        squeeze=False,
        layout="constrained",
    )
    for panel, (title, probabilities, color, *known) in zip(axes[:, 0], panels, strict=True):
        panel.bar(range(len(STRINGS)), probabilities, color=color)
        if known:
            panel.plot(known[1], "D", color="black", markersize=3.5, label=known[0])
            panel.legend(frameon=False, loc="upper right")
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylabel("probability")
    names = [string or "(end)" for string in STRINGS]
    axes[-1, 0].set_xticks(range(len(STRINGS)), names, rotation=90, family="monospace")
    axes[-1, 0].set_xlim(-0.7, len(STRINGS) - 0.3)
    plt.show()


# %% [markdown]
# ## 1. Pre-training: the corpus's distribution
# The corpus is 6,000 strings in which letters like to change (`aha`, `hah`, `ah`) and `!` is rare.
# Pre-training minimises the cross-entropy, which is smallest where the model *is* the corpus:
#
# $$-E_{y \sim \mathrm{corpus}} \log \pi(y) = H(\mathrm{corpus}) + KL(\mathrm{corpus} \,\|\, \pi).$$

# %%
from genai_jax.data.loader import Loader
from genai_jax.data.packing import PackedRows
from genai_jax.objectives.next_token import next_token
from genai_jax.rl.best_of_n import best_of_n_distribution, divergence, kl_bound
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.passes import Passes
from genai_jax.training.schedules import ScheduleConfig, make_schedule
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step

ROW, ROWS = 32, 32  # tokens of a packed row, rows of a batch


def normalised(log_weights):
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / weights.sum()


def changes(string):
    return sum(a != b for a, b in itertools.pairwise(string))


TRUTH = normalised([0.7 * changes(s) - 0.8 * s.count("!") - 0.3 * len(s) for s in STRINGS])
corpus = random.choice(STRINGS, 6000, p=TRUTH)
documents = [np.concatenate([PROMPT, tokenizer.encode(string)]) for string in corpus]
offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
packed = PackedRows(
    np.concatenate(documents), offsets, np.arange(len(documents)), length=ROW, seed=0
)


def adam(rate, updates):
    """AdamW without decay, whose learning rate falls to zero."""
    shape = ScheduleConfig(rate, "linear", warmup_steps=updates // 10, final_fraction=0.0)
    return make_optimizer(
        OptimizerConfig(weight_decay=0.0),
        make_schedule(shape, updates),
        decays=lm.decays,
        muon=lm.hidden_matrix,
    )


def first_state(model, optimizer, context=None):
    return init_state(lambda: model, optimizer, mesh, lm.SHARDING_RULES, context=context)


UPDATES = 250
optimizer = adam(1e-2, UPDATES)
text_step = make_train_step(next_token, optimizer, mesh, first_state(untrained, optimizer), seed=0)


def train_on_text(model, rows):
    state = first_state(model, optimizer)
    with Loader(rows, ROWS) as loader:
        for number in range(UPDATES):
            state, _ = text_step(state, loader.batch(number))
    return state.model


base = train_on_text(untrained, packed)
print(f"KL(corpus, model) = {divergence(TRUTH, distribution(base)):.4f} nats")
draw_bars(
    ("not trained", distribution(untrained), GREY, "corpus", TRUTH),
    ("pre-trained", distribution(base), BLUE, "corpus", TRUTH),
)
assert divergence(TRUTH, distribution(base)) < 0.02

# %% [markdown]
# ## 2. Supervised fine-tuning: demonstrations
# People show how to answer: most laugh, at length or not. The loss is the same; what differs is the
# *loss mask*. Of a corpus every token is to be predicted. Of a demonstration only the answer is,
# its end included: neither the prompt (here only the token that begins; usually a question) nor
# padding. Below, each square is a token. Blue ones are predicted, from those before them in the
# same frame (a segment); what comes first in a row is predicted from nothing, and never counts.

# %%
from genai_jax.data.example_rows import ExampleRows, LearntText, LearntTexts

LAUGHS = ["a", "h", "ah", "ha", "ah!", "ha!"]
SHOWN = 0.7 * np.isin(STRINGS, LAUGHS) / len(LAUGHS) + 0.3 * TRUTH
demonstrations = []
for string in random.choice(STRINGS, 1500, p=SHOWN):
    ids = np.concatenate([PROMPT, answer_of(string)])
    demonstrations.append(LearntText(ids, np.arange(len(ids)) >= len(PROMPT)))
examples = ExampleRows(LearntTexts(demonstrations), length=ROW, seed=0)

padding = [(np.sum(examples[i]["segment_ids"] == 0), i) for i in range(len(examples))]
padded = examples[max((n, i) for n, i in padding if n < ROW // 4)[1]]
shown = {"a row of the corpus": packed[0], "a row of demonstrations": padded}
figure, axes = plt.subplots(2, 1, figsize=(12, 1.9), layout="constrained")
for panel, (title, row) in zip(axes, shown.items(), strict=True):
    # `loss_mask[t]` is of `targets[t]`, which is `tokens[t + 1]`.
    predicted = np.concatenate([[0], row["loss_mask"][:-1]])
    for place, (token, counts) in enumerate(zip(row["tokens"], predicted, strict=True)):
        empty = not row["segment_ids"][place]
        name = "" if empty else "end" if token == END else tokenizer.decode([token])
        color = "white" if empty else "#9ecae9" if counts else "#e8e8e8"
        panel.add_patch(plt.Rectangle((place, 0), 0.94, 1, facecolor=color, edgecolor="none"))
        panel.text(place + 0.47, 0.45, name, ha="center", va="center", family="monospace")
    for segment in np.unique(row["segment_ids"][row["segment_ids"] > 0]):
        places = np.flatnonzero(row["segment_ids"] == segment)
        panel.add_patch(
            plt.Rectangle((places[0] - 0.03, 0), len(places), 1, fill=False, edgecolor="black")
        )
    panel.set(xlim=(-0.1, ROW + 0.1), ylim=(-0.1, 1.1), yticks=[], xticks=[])
    panel.set_title(title, loc="left", fontsize=10)
    panel.axis("off")
plt.show()

tuned = train_on_text(base, examples)
reference = distribution(tuned)
draw_bars(
    ("pre-trained", distribution(base), GREY, "corpus", TRUTH),
    ("fine-tuned", reference, BLUE, "demonstrations", SHOWN),
)
assert divergence(SHOWN, reference) < 0.03

# %% [markdown]
# ## 3. A reward model: from comparisons to numbers
# What people want is a number $r(y)$ that nobody can write down; here we can: laughing is good, so
# is one `!` at the end, more are not, and `a` is a little better than `h`. People only say which of
# two answers is better, by chance, as Bradley and Terry have it:
#
# $$P(a \succ b) = \sigma(r(a) - r(b)).$$
#
# Half of the answers are the tuned model's, half are any string, so that each is asked
# about. There are 1,560 ordered pairs of strings; they are the rows, each with the number of
# comparisons that ended so as its weight. The reward model is the tuned model with one number as
# its head, read at the last token. It minimises $-\log \sigma(\hat r(a) - \hat r(b))$.
#
# No model can foretell a label for sure. The best there can be is right in
# $E \max(p, 1 - p)$ of all comparisons: the ceiling.

# %%
from genai_jax.models.heads import ScalarModel
from genai_jax.objectives.reward_model import answer_rewards, make_reward_model_objective


def true_reward(string):
    laughs = string.count("ha") + string.count("ah")
    marks = string.count("!")
    ends = string.endswith("!")
    return 0.8 * laughs + 0.8 * ends - 1.1 * max(0, marks - 1) + 0.2 * string.count("a")


REWARD = np.array([true_reward(string) for string in STRINGS])
ASKED = 0.5 * reference / reference.sum() + 0.5 / len(STRINGS)
COMPARISONS = 20_000
ORDERED = np.array(list(itertools.permutations(range(len(STRINGS)), 2)))  # the preferred one first
of_pairs = np.prod(ASKED[ORDERED], axis=1)
of_pairs /= of_pairs.sum()


def rates_of(reward):
    """How often the first of each pair is preferred."""
    return 1 / (1 + np.exp(reward[ORDERED[:, 1]] - reward[ORDERED[:, 0]]))


def compare(reward):
    """How often a judge of that reward is asked about two strings and prefers the first."""
    asked = random.multinomial(COMPARISONS, of_pairs)
    first = random.binomial(asked, rates_of(reward))
    turned = {(a, b): number for number, (a, b) in enumerate(ORDERED.tolist())}
    return first + (asked - first)[[turned[b, a] for a, b in ORDERED.tolist()]]


def make_trainer(objective, rate, updates, batch_means=None):
    """Make `(model, rows) -> model`: all updates, each of all rows, are one call of the step."""
    optimizer = adam(rate, updates)
    made = []

    def trained(model, rows):
        state = first_state(model, optimizer, {})
        if not made:  # compiled once for all sets of rows
            made.append(
                make_train_step(
                    objective,
                    optimizer,
                    mesh,
                    state,
                    seed=0,
                    passes=Passes(updates),
                    batch_means=batch_means,
                )
            )
        return made[0](state, rows)[0].model

    return trained


often = compare(REWARD)
pair_rows = rows_of([[STRINGS[a], STRINGS[b]] for a, b in ORDERED])
preferences = pair_rows | {"weight": often.astype(np.float32)}
train_rewards = make_trainer(make_reward_model_objective(), 1e-2, 240)
reward_model = train_rewards(ScalarModel(tuned, jax.random.key(1)), preferences)


def rewards_of(model):
    """What it says of every string, with the mean that the true reward has."""
    found = np.asarray(jax.jit(answer_rewards)(model, EVERY), np.float64)[:, 0]
    return found - found.mean() + REWARD.mean()


learned = rewards_of(reward_model)
rates, right = rates_of(REWARD), rates_of(learned) > 0.5
ceiling = of_pairs @ np.maximum(rates, 1 - rates)
accuracy = of_pairs @ np.where(right, rates, 1 - rates)

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(2, 1))
lowest, highest = REWARD.min() - 0.3, REWARD.max() + 0.3
axes[0].plot([lowest, highest], [lowest, highest], color=GREY, zorder=0)
size = 8 + 1000 * ASKED
axes[0].scatter(REWARD, learned, size, color=BLUE, alpha=0.7, linewidths=0)
for name in ("aha", "ha", "a", "h", "!!!", "!!"):
    place = REWARD[STRINGS.index(name)], learned[STRINGS.index(name)]
    axes[0].annotate(name, place, xytext=(9, -12), textcoords="offset points")
axes[0].set(
    xlabel="true reward",
    ylabel="learned reward",
    title="each string; the larger, the more comparisons",
)
axes[1].bar(
    ["chance", "reward model", "ceiling"], [0.5, accuracy, ceiling], color=[GREY, BLUE, GREEN]
)
axes[1].bar_label(axes[1].containers[0], fmt="%.3f")
axes[1].set(ylabel="expected accuracy", ylim=(0, 1))
plt.show()
assert abs(accuracy - ceiling) < 0.03

# %% [markdown]
# ## 4. Reinforcement learning: reward, held by a divergence
# The policy shall earn reward and stay near the tuned model, $\pi_{ref}$: maximise
#
# $$E_{y \sim \pi}\, \hat r(y) - \beta\, KL(\pi \| \pi_{ref}),
#   \qquad\text{whose maximum is}\qquad
#   \pi^*(y) = \frac{1}{Z}\, \pi_{ref}(y)\, e^{\hat r(y) / \beta}.$$
#
# RLOO does so with draws. It takes the divergence off the reward,
# $R = \hat r - \beta \log \frac{\pi}{\pi_{ref}}$, and raises $\log \pi$ of an answer by how much
# its R exceeds that of the other answers of its group. Step by step: draw (decode engine), judge
# (reward model), score (both policies), compare (advantages), update. The first ratio of a step
# must be one, so the engine's probabilities are checked against those that training computes.

# %%
from genai_jax.objectives.policy_gradient import make_policy_gradient
from genai_jax.objectives.token_log_probs import score_rows
from genai_jax.rl.advantages import group_advantages
from genai_jax.rl.algorithms import GRPO, RLOO, optimum_of
from genai_jax.rl.learned_reward import LearnedReward
from genai_jax.rl.rollouts import (
    Prompt,
    RolloutConfig,
    check_gap,
    draw_rollouts,
    make_scorer,
    rollout_rows,
)
from genai_jax.rl.targets import rollout_targets

BETA, GROUP, STEPS = 0.5, 64, 80


def tilted(reference, reward, beta):
    """The policy pi_ref exp(r / beta) / Z."""
    return normalised(np.log(reference) + reward / beta)


OPTIMUM = tilted(reference, learned, BETA)
print(optimum_of(RLOO, BETA))

rollouts = RolloutConfig(prompts=1, group=GROUP, max_tokens=LONGEST)
advantages = dataclasses.replace(RLOO.advantages, group_size=GROUP)
judge = LearnedReward(reward_model, length=1 + LONGEST, rows=GROUP)
score = make_scorer(mesh, rollouts.temperature)
targets_of = jax.jit(rollout_targets, static_argnums=0)

optimizer = adam(1e-2, STEPS)
state = first_state(tuned, optimizer)
rloo_step = make_train_step(make_policy_gradient(RLOO.loss), optimizer, mesh, state, seed=0)
drawn_path = []
for number in range(STEPS):
    drawn_path.append(distribution(state.model))
    drawn = draw_rollouts(
        state.model,
        [Prompt(PROMPT, "")],
        rollouts,
        length=1 + LONGEST,
        seed=0,
        step=number,
        stop_ids=[END],
        vocab_size=tokenizer.vocab_size,
    )
    scores = jnp.array(judge(drawn.samples(tokenizer)))
    rows = score(state.model, tuned, None, rollout_rows(drawn, 1 + LONGEST))
    check_gap(rows, 1e-4)
    found = targets_of(
        advantages,
        scores,
        jnp.array(rows["loss_mask"]),
        rows["old_log_probs"] - rows["ref_log_probs"],
        BETA,
    )
    names = ("tokens", "targets", "loss_mask", "old_log_probs", "ref_log_probs", "weights_step")
    batch = {name: rows[name] for name in names} | {"advantages": found.advantages}
    state, metrics = rloo_step(state, batch)
    assert metrics["first_log_ratio"][0] < 1e-3
drawn_path.append(distribution(state.model))

# %% [markdown]
# And without chance: with 40 strings the expectation is a sum. All of them are one batch, each with
# its probability as its weight; the loss and the step are the same. Gradient ascent then goes where
# draws only go on average.

# %%
REFERENCE_TOKENS = jnp.array(score_rows(tuned, EVERY["tokens"][:, 0], EVERY["targets"][:, 0])[0])


def make_ascent(loss, *, baseline="mean", updates=500, rate=5e-3):
    """Make `(reward, beta, kl_in_reward) -> distributions`, those before each update and after all,
    by exact expectations; a group is infinite."""
    optimizer = adam(rate, updates)
    first = first_state(tuned, optimizer, {"beta": jnp.float32(0)})
    step = make_train_step(make_policy_gradient(loss), optimizer, mesh, first, seed=0)
    tokens, targets, mask = (EVERY[n][:, 0] for n in ("tokens", "targets", "loss_mask"))

    def update(carried, _):
        state, reward, cost = carried
        old = score_rows(state.model, tokens, targets).log_probs
        log_ratio = jnp.sum(mask * (old - REFERENCE_TOKENS), -1)
        chances = jnp.exp(jnp.sum(mask * old, -1))
        earned = reward - cost * log_ratio
        better = group_advantages(earned[None], chances[None], baseline=baseline, ddof=0)[0]
        batch = {
            "tokens": tokens,
            "targets": targets,
            "loss_mask": mask,
            "advantages": mask * better[:, None],
            "old_log_probs": old,
            "ref_log_probs": REFERENCE_TOKENS,
            "weight": chances,
        }
        return (step(state, batch)[0], reward, cost), chances

    ascend = jax.jit(lambda carried: jax.lax.scan(update, carried, length=updates))

    def path(reward, beta=0.0, *, kl_in_reward=True):
        state = dataclasses.replace(first, context={"beta": jnp.float32(beta)})
        cost = jnp.float32(beta if kl_in_reward else 0.0)
        (state, _, _), passed = ascend((state, jnp.array(reward, jnp.float32), cost))
        return [*np.asarray(passed, np.float64), distribution(state.model)]

    return path


ascend = make_ascent(RLOO.loss)
exact_path = ascend(learned, BETA)

draw_bars(
    ("fine-tuned: the reference", reference, GREY),
    (f"RLOO, {STEPS} steps of {GROUP} rollouts", drawn_path[-1], ORANGE, "π*", OPTIMUM),
    ("the same by exact expectations", exact_path[-1], BLUE, "π*", OPTIMUM),
)
print(f"KL(RLOO, π*) by draws {divergence(drawn_path[-1], OPTIMUM):.4f} nats, ", end="")
print(f"by expectations {divergence(exact_path[-1], OPTIMUM):.5f}")
assert divergence(drawn_path[-1], OPTIMUM) < 0.1 < divergence(reference, OPTIMUM)
assert divergence(exact_path[-1], OPTIMUM) < 1e-3

# %% [markdown]
# Reward against divergence, step by step. No policy lies above the curve of the optima for all β
# (black): each of them has the most reward that its divergence allows. Training climbs below it,
# goes too far while its steps are large, and ends on it, where β says.


# %%
def divergences(policies):
    return [divergence(policy, reference) for policy in policies]


frontier = [tilted(reference, learned, 1 / x) for x in np.linspace(1e-3, 8, 200)]
most = float(
    np.interp(
        divergence(exact_path[-1], reference), divergences(frontier), np.array(frontier) @ learned
    )
)
assert abs(exact_path[-1] @ learned - most) < 1e-2

plt.figure(figsize=(7.5, 4), layout="constrained")
plt.plot(
    divergences(frontier), np.array(frontier) @ learned, color="black", label="optima for all β"
)
plt.plot(
    divergences(drawn_path),
    np.array(drawn_path) @ learned,
    ".-",
    color=ORANGE,
    lw=0.8,
    ms=4,
    label="RLOO by draws",
)
plt.plot(
    divergences(exact_path),
    np.array(exact_path) @ learned,
    ".-",
    color=BLUE,
    lw=0.8,
    ms=4,
    label="by exact expectations",
)
plt.plot(
    divergence(OPTIMUM, reference),
    OPTIMUM @ learned,
    "*",
    color=RED,
    ms=14,
    label=f"π* for β = {BETA}",
)
plt.xlabel("KL(π, π_ref) in nats")
plt.ylabel("expected learned reward")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Preferences without a reward model
# Turn π* around: $\hat r(y) = \beta \log \frac{\pi^*(y)}{\pi_{ref}(y)} + \mathrm{const}$. So a
# policy is a reward model, and DPO trains it as one, on the same comparisons; it holds strings that
# are in some of them, which here all are. For a preferred to b, with
# $h = \log\frac{\pi(a)}{\pi_{ref}(a)} - \log\frac{\pi(b)}{\pi_{ref}(b)}$:
#
# | loss | of a comparison | where it ends |
# | --- | --- | --- |
# | DPO | $-\log\sigma(\beta h)$ | $\pi_{ref} e^{r / \beta}$: as RLOO |
# | IPO | $(h - \frac{1}{2\beta})^2$ | $\pi_{ref} e^{s / \beta}$ |
# | KTO | of each answer alone, good or bad | what is bad more often than good goes to 0 |
#
# with $s(y) = E_b P(y \succ b) - \frac12$ over what else was asked about. Since s is bounded, IPO
# stays near the reference.

# %%
from genai_jax.objectives.kto import KTOConfig, make_kto
from genai_jax.objectives.preference import PreferenceConfig, make_preference

log_reference = np.log(reference).astype(np.float32)
preferences |= {"ref_log_probs": log_reference[ORDERED]}
aligned = {}
for loss in ("dpo", "ipo"):
    trainer = make_trainer(make_preference(PreferenceConfig(loss, beta=BETA)), 1e-2, 120)
    aligned[loss] = distribution(trainer(tuned, preferences))

# KTO's rows: an answer with its verdict, and beside it one to another prompt: here, the other one.
judged = {name: np.concatenate([x, x[:, ::-1]]) for name, x in preferences.items() if x.ndim > 1}
judged["weight"] = np.tile(preferences["weight"], 2)
judged["desirable"] = np.repeat(np.float32([1, 0]), len(ORDERED))
kto, kto_means = make_kto(KTOConfig(beta=BETA))
trainer = make_trainer(kto, 1e-2, 120, batch_means=kto_means)
aligned["kto"] = distribution(trainer(tuned, judged))

RATES = 1 / (1 + np.exp(REWARD[None] - REWARD[:, None]))  # how often the row beats the column
ipo_optimum = tilted(reference, (RATES - 0.5) @ ASKED, BETA)
often_bad = np.where(RATES @ ASKED < 0.5, 0.0, np.nan)
draw_bars(
    ("DPO", aligned["dpo"], GREEN, "π*", OPTIMUM),
    ("IPO", aligned["ipo"], ORANGE, "its own optimum", ipo_optimum),
    ("KTO", aligned["kto"], RED, "bad more often than good", often_bad),
)
for name, policy in aligned.items():
    print(
        f"{name}: true reward {policy @ REWARD:.2f}, KL from the reference "
        f"{divergence(policy, reference):.2f}, from π* {divergence(policy, OPTIMUM):.3f}"
    )

assert divergence(aligned["dpo"], OPTIMUM) < 0.01 < divergence(aligned["kto"], OPTIMUM)
assert divergence(aligned["ipo"], ipo_optimum) < 0.01
assert aligned["kto"][often_bad == 0].sum() < 0.02

# %% [markdown]
# ## 6. GRPO goes elsewhere
# GRPO differs from RLOO in two things, and either moves the optimum.
#
# - The divergence is in the *loss*, by the estimator $k_3 = e^{-d} - 1 + d$ with
#   $d = \log\frac{\pi}{\pi_{ref}}$. Its value is right, its gradient is that of the other
#   direction, $KL(\pi_{ref} \| \pi)$. So each token has
#   $\pi = \beta\, \pi_{ref} / (\lambda - Q)$, with Q the reward to be expected after it and λ such
#   that the sum is one: no exponential, and all that the reference does stays alive.
# - The advantage is divided by the group's standard deviation σ, as if β were β σ; and σ changes
#   with the policy. The end is a fixed point of its own: that of β σ where σ is its own.
#
# (Here the loss is a sum over tokens. The mean over each answer, as in the paper, moves it again.)

# %%


def aimed_by_k3(reward, beta):
    """The policy of which each token has beta pi_ref / (lambda - Q), from the last token back."""
    chance = np.zeros(len(STRINGS))

    def value(prefix):
        if len(prefix) == LONGEST:
            chance[STRINGS.index(prefix)] = 1
            return reward[STRINGS.index(prefix)]
        ways = [[prefix], *([s for s in STRINGS if s.startswith(prefix + x)] for x in "ah!")]
        ways = [[STRINGS.index(s) for s in way] for way in ways]
        chance[ways[0]] = 1
        q = np.array([reward[ways[0][0]], *(value(prefix + x) for x in "ah!")])
        p = np.array([reference[way].sum() for way in ways])
        p /= p.sum()
        low, high = q.max(), q.max() + beta
        for _ in range(60):  # the sum falls with lambda
            middle = (low + high) / 2
            low, high = (low, middle) if np.sum(beta * p / (middle - q)) < 1 else (middle, high)
        p = beta * p / (high - q)
        for way, share in zip(ways, p, strict=True):
            chance[way] *= share
        return p @ q

    value("")
    return chance


def width(policy):
    return np.sqrt(policy @ np.square(learned - policy @ learned))


k3 = dataclasses.replace(GRPO.loss, aggregation="sequence_sum", kl_coefficient=None)
plain = make_ascent(k3)(learned, BETA, kl_in_reward=False)[-1]
normed = make_ascent(k3, baseline="std")(learned, BETA, kl_in_reward=False)[-1]
plain_aim = own_aim = aimed_by_k3(learned, BETA)
for _ in range(50):
    own_aim = aimed_by_k3(learned, BETA * width(own_aim))

draw_bars(
    ("RLOO, the divergence in the reward", exact_path[-1], BLUE, "π*", OPTIMUM),
    ("k3 in the loss", plain, GREEN, "β π_ref / (λ - Q)", plain_aim),
    ("k3 in the loss, divided by σ: GRPO", normed, RED, "fixed point", own_aim),
)
for name, policy, aim in (("k3", plain, plain_aim), ("GRPO", normed, own_aim)):
    assert divergence(policy, aim) < 1e-3 < divergence(policy, OPTIMUM)
    print(f"{name}: from its own aim {divergence(policy, aim):.4f} nats, ", end="")
    print(f"from π* {divergence(policy, OPTIMUM):.3f}; σ {width(policy):.2f}")

# %% [markdown]
# ## 7. Reward hacking
# A hurried judge looks at nothing but how many `!` an answer ends with. A reward model learns that
# well, and the policy follows it without a divergence to hold it ($\beta = 0$). At first the true
# reward rises: among what the tuned model says, answers with a `!` *are* better. Then the policy
# finds the others, and ends in `!!!`. More of what is measured, less of what is meant (Goodhart's
# law).
#
# Best-of-n needs no training: draw n, take what the reward model likes best. Its divergence is at
# most $\log n - \frac{n - 1}{n}$ (right), and less where n draws often hold the best string twice.
#
# Dotted are the optima for all β: for their divergence they have the most of the *learned* reward,
# and so they pass the peak, too. Best-of-n has less of it and more of the true one: it makes no
# string more than n times as likely, so that `!!!` comes late. RLOO without a divergence has the
# least good before the bad: its steps change parameters that strings share, so that `aa!` and `a!!`
# rise with `ha!`.

# %%
HURRIED = np.array([0.8 * (len(s) - len(s.rstrip("!"))) for s in STRINGS])
hurried = pair_rows | {"weight": compare(HURRIED).astype(np.float32)}
fooled = train_rewards(ScalarModel(tuned, jax.random.key(2)), hurried)
proxy = rewards_of(fooled) - rewards_of(fooled) @ reference
gold = REWARD - REWARD @ reference
hacked = np.array(ascend(proxy))
counts = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512]
chosen = np.array([best_of_n_distribution(reference, proxy, n) for n in counts])

figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", width_ratios=(3, 2))
optima = np.array([tilted(reference, proxy, 1 / x) for x in np.linspace(1e-3, 12, 200)])
ways = (("RLOO", hacked, ".-"), ("best of n", chosen, "o--"), ("optima for all β", optima, ":"))
for name, policies, style in ways:
    distance = divergences(policies)
    for what, values, color in (("learned", proxy, RED), ("true", gold, GREEN)):
        label = f"{name}: {what} reward"
        axes[0].plot(distance, policies @ values, style, color=color, ms=4, label=label)
axes[0].axhline(0, color=GREY, zorder=0)
axes[0].set(xlabel="KL(π, π_ref) in nats", ylabel="expected reward, above the reference's")
axes[0].legend(frameon=False, loc="lower left", fontsize=8)
axes[1].plot(counts, [kl_bound(n) for n in counts], color="black", label="log n - (n - 1) / n")
axes[1].plot(counts, divergences(chosen), "o--", color=ORANGE, ms=4, label="best of n")
axes[1].set(xscale="log", xlabel="n", ylabel="KL(best of n, π_ref) in nats")
axes[1].legend(frameon=False)
plt.show()

best = int(np.argmax(hacked @ gold))
draw_bars(
    ("the reference", reference, GREY),
    (f"true reward highest, after {best} updates", hacked[best], GREEN),
    ("at the end", hacked[-1], RED),
    same_scale=False,
)
print(
    f"true reward above the reference's: {gold @ hacked[best]:.2f} after {best} updates, "
    f"{gold @ hacked[-1]:.2f} at the end"
)
assert 0 < best < len(hacked) - 1
assert gold @ hacked[-1] < 0 < gold @ hacked[best]
assert all(kl <= kl_bound(n) + 1e-9 for n, kl in zip(counts, divergences(chosen), strict=True))

# %% [markdown]
# ## Try
# 1. Set `BETA` to 0.1, then to 2. Where does π* lie on the black curve, and which of the methods of
#    part 5 moves least?
# 2. Let nobody be asked about `aha`: set its `ASKED` to 0. What does DPO do with it, and what RLOO?
# 3. Take only 500 `COMPARISONS`. Which strings leave the diagonal, and does the accuracy fall?
# 4. In part 6 take the loss as it is, `GRPO.loss` with `kl_coefficient=None`. What do long answers
#    gain?
# 5. In part 7 let RLOO have β = 0.5. Where on the curve does it stop?
# 6. Read `optimum_of(GRPO)`. Which word of it does each panel of part 6 show?
#
# The same on real text: `python experiments/lm_pipeline.py`, or its stages alone: `lm_sft.py`,
# `lm_reward.py`, `lm_ppo.py`, `lm_grpo.py`, `lm_dpo.py`; and `lm_overoptimisation.py` for part 7.
