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
# # Sample a language model
#
# A language model gives one thing: the probabilities of the next token. All the rest, what is drawn
# from them, how fast, and within which bounds, is *decoding*. Here it is made visible: temperature
# and filters, the cache, many requests at a time, text held to a schema, surprise as colour, and
# why the likeliest text is dull. Runs on a TPU, a GPU or a CPU; about a minute on two CPU cores.
#
# `colab/train_a_language_model.ipynb` shows where such a model comes from. Every step below is a
# call into the library, and wherever an answer is known, an `assert` checks it.

# %%
# Where this notebook was opened without the repository (as in Colab): its Git address.
REPOSITORY = ""  # @param {type:"string"}

import importlib.util
import os
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
from genai_jax.parallel.cpu_devices import describe_devices, split_cpu

split_cpu()  # one device a core, if there is no accelerator; must come before JAX starts

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

print(describe_devices())

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#BBBBBB"

# %% [markdown]
# ## A model that has something to say
# Two layers, trained for some seconds on modules of Python's own library. One layer sees the last
# 32 tokens only (a sliding window), the other sees all. `STEPS` may be set in the environment.

# %%
import glob
import sysconfig

from genai_jax.data.loader import Loader
from genai_jax.data.text import TextConfig, load_text
from genai_jax.models import lm
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.cpu_devices import fastest_microbatches
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.schedules import ScheduleConfig, make_schedule
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step

accelerated = jax.default_backend() != "cpu"
STEPS = int(os.environ.get("STEPS", 1000 if accelerated else 300))
LENGTH, ROWS = 128, 16  # tokens of a row, rows of a batch
CONTEXT, WINDOW = 1024, 32  # most tokens of a text, tokens that a sliding layer sees

modules = glob.escape(sysconfig.get_path("stdlib")) + "/*.py"
data = load_text(TextConfig(path=modules, vocab_size=1024), length=LENGTH, seed=0)
tokenizer = data.tokenizer
print(data.summary)

mesh = make_mesh()
config = TransformerConfig(
    vocab_size=tokenizer.vocab_size,
    num_layers=2,
    embed_dim=128,
    num_heads=4,
    mlp_dim=384,
    max_length=CONTEXT,
    window=WINDOW,
    layer_pattern=("sliding", "global"),
)
schedule = make_schedule(
    ScheduleConfig(1e-2, "linear", warmup_steps=min(20, STEPS // 2), final_fraction=0.0), STEPS
)
optimizer = make_optimizer(
    OptimizerConfig("muon", muon_momentum=0.85), schedule, decays=lm.decays, muon=lm.hidden_matrix
)
state = init_state(
    lambda: lm.LanguageModel(config, jax.random.key(0)), optimizer, mesh, lm.SHARDING_RULES
)
microbatches = fastest_microbatches(max(1, ROWS // jax.device_count()), LENGTH)
train_step = make_train_step(next_token, optimizer, mesh, state, seed=0, microbatches=microbatches)
with Loader(data.train, ROWS, sharding=batch_sharding(mesh)) as loader:
    for step in range(STEPS):
        state, metrics = train_step(state, loader.batch(step))
        total, weight = metrics["loss"]
        loss = float(total / weight)
        if step % max(1, STEPS // 6) == 0 or step == STEPS - 1:
            print(f"step {step:4}  loss {loss:.3f} nats per token")
model = jax.device_put(state.model, jax.devices()[0])

# %% [markdown]
# ## The next token
# A prompt goes in; out come V numbers, the logits $l$, and $\mathrm{softmax}(l)$ is the
# distribution of the next token. A space belongs to the token *behind* it (`␣` below): so let a
# prompt end with a word, not with a space.

# %%
from genai_jax.decoding.text import prompt_tokens

PROMPT = "    if value is None:\n        raise"


def shown(token):
    """A token as a label."""
    return tokenizer.decode([int(token)]).replace(" ", "␣").replace("\n", "↵") or "end"


prompt = jnp.asarray(prompt_tokens(tokenizer, PROMPT))
print([shown(token) for token in prompt])
logits = jax.jit(lambda model, tokens: model(tokens)[:, -1])(model, prompt[None])
probabilities = np.asarray(jax.nn.softmax(logits[0]))
top = np.argsort(-probabilities)[:16]
others = 1 - probabilities[top].sum()

plt.figure(figsize=(8, 3.2), layout="constrained")
plt.bar(range(len(top)), probabilities[top], color=BLUE)
names = [shown(token) for token in top]
slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor", "family": "monospace"}
plt.xticks(range(len(top)), names, **slanted)
plt.ylabel("probability")
plt.title(f"the 16 likeliest tokens; all {len(probabilities) - 16:,} others together: {others:.2f}")
plt.show()

# %% [markdown]
# ## What temperature and the filters do to it
# Temperature τ divides the logits: below 1 the likely become likelier, above 1 all become alike.
# A filter cuts off the tail, and what is left is made to sum to one again:
#
# - *top-k* keeps the k likeliest;
# - *top-p* keeps the fewest likeliest that sum to p or more: many where the model is unsure;
# - *min-p* keeps what is at least that many times as likely as the likeliest.
#
# Bars are computed. Dots are counted: the share of 2,000 draws that gave that token. They must
# agree.

# %%
from genai_jax.decoding.filters import kept_tokens
from genai_jax.decoding.sampling import SamplingConfig, draw_tokens, settings_of

DRAWS = 2000
settings = {
    "temperature 0.5": SamplingConfig(temperature=0.5),
    "temperature 1: the model's own": SamplingConfig(),
    "temperature 2": SamplingConfig(temperature=2.0),
    "top-k 5": SamplingConfig(top_k=5),
    "top-p 0.7": SamplingConfig(top_p=0.7),
    "min-p 0.2": SamplingConfig(min_p=0.2),
}
draw = jax.jit(draw_tokens)
many = jnp.repeat(logits, DRAWS, axis=0)

figure, axes = plt.subplots(2, 3, figsize=(12, 6), sharex=True, sharey=True, layout="constrained")
for number, (panel, (name, sampling)) in enumerate(zip(axes.flat, settings.items(), strict=True)):
    one = settings_of([sampling], config.vocab_size)
    scaled = logits / one.temperature[:, None]
    kept = np.asarray(kept_tokens(scaled, one.filters))[0]
    before = np.asarray(jax.nn.softmax(scaled[0]))
    after = np.where(kept, before, 0) / before[kept].sum()

    each = settings_of([sampling] * DRAWS, config.vocab_size)
    keys = jax.random.split(jax.random.key(number), DRAWS)
    drawn = draw(many, keys, each.temperature, each.filters).tokens
    frequency = np.bincount(drawn, minlength=config.vocab_size) / DRAWS
    assert not frequency[~kept].any()
    common = after * DRAWS >= 20
    error = np.sqrt(after * (1 - after) / DRAWS)
    assert (np.abs(frequency - after)[common] <= 5 * error[common]).all()

    gone = np.where(kept, 0, before)
    panel.bar(range(len(top)), gone[top], color=GREY, label="cut off: probability before")
    panel.bar(range(len(top)), after[top], color=BLUE, label="probability after")
    panel.plot(frequency[top], "o", color="black", markersize=4, label=f"share of {DRAWS:,} draws")
    entropy = -np.sum(after[after > 0] * np.log(after[after > 0]))
    panel.set_title(name)
    panel.text(
        0.97,
        0.93,
        f"keeps {kept.sum():,} of {len(kept):,}\n16 shown: {after[top].sum():.2f}\n"
        f"entropy {entropy:.1f} nats",
        transform=panel.transAxes,
        ha="right",
        va="top",
    )
for panel in axes[1]:
    panel.set_xticks(range(len(top)), names, rotation=90, family="monospace")
for panel in axes[:, 0]:
    panel.set_ylabel("probability")
handles, labels = axes[1, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# ## The cache changes nothing but the time
# A token looks at the keys and values of those before it. These never change, so that they are
# kept: a step then computes one token instead of all. First the check: token by token with the
# cache, and all at once without it, the log-probabilities are the same to float precision.

# %%
from functools import partial


@jax.jit
def read_all(model, tokens):
    return jax.nn.log_softmax(model(tokens[None])[0])


@partial(jax.jit, donate_argnums=1)  # the cache is written in place
def read_one(model, cache, token, position):
    hidden, cache = model.decode(token[None, None], cache, position[None, None])
    return jax.nn.log_softmax(model.logits(hidden)[0, 0]), cache


document = max(data.validation_documents(), key=len).decode()
tokens = np.resize(prompt_tokens(tokenizer, document), CONTEXT).astype(np.int32)
whole = read_all(model, tokens[:LENGTH])

cache = model.init_cache(1, CONTEXT)
for position in range(LENGTH):
    old = [np.array(layer.key) for layer in cache.layers]
    log_probs, cache = read_one(model, cache, tokens[position], np.int32(position))
    np.testing.assert_allclose(log_probs, whole[position], atol=5e-2 if accelerated else 1e-4)
difference = float(jnp.abs(log_probs - whole[-1]).max())
print(f"largest difference at the last position: {difference:.1e} nats")

# %% [markdown]
# What is in it: the layer that sees all has a slot for each position. The sliding layer looks back
# 32 tokens, so it has 32 slots and no more, in a ring: position p lies in slot p mod 32, over
# what can no longer be seen. A step writes one slot of each layer and moves nothing.

# %%
for number, (kind, layer) in enumerate(zip(config.layer_kinds, cache.layers, strict=True)):
    changed = np.unique(np.nonzero(old[number] != np.asarray(layer.key))[2])
    size = (layer.key.nbytes + layer.value.nbytes) / 1024
    print(
        f"layer {number}, {kind:7}: {layer.key.shape[2]:4} slots, {size:5.0f} KiB; "
        f"position {position} was written to slot {changed}"
    )
    assert changed.tolist() == [position % layer.key.shape[2]]

# %% [markdown]
# And the time of a step. Without the cache it grows with the text; with it (all slots are there
# from the beginning, the empty ones masked) it does not.

# %%
from time import perf_counter

cache = model.init_cache(1, CONTEXT)
with_cache = []
for position in range(CONTEXT):
    begin = perf_counter()
    log_probs, cache = read_one(model, cache, tokens[position], np.int32(position))
    log_probs.block_until_ready()
    with_cache.append(1e3 * (perf_counter() - begin))

lengths = [64, 128, 256, 384, 512, 768, 1024]
without = []
for length in lengths:
    read_all(model, tokens[:length]).block_until_ready()  # compiles
    times = []
    for _ in range(7):
        begin = perf_counter()
        read_all(model, tokens[:length]).block_until_ready()
        times.append(1e3 * (perf_counter() - begin))
    without.append(min(times))

smooth = [np.median(with_cache[i : i + 32]) for i in range(0, CONTEXT, 32)]
plt.figure(figsize=(7.5, 3.6), layout="constrained")
plt.plot(lengths, without, "s-", color=RED, label="without the cache: fastest of 7")
plt.plot(with_cache, ".", color=GREY, markersize=3, label="with the cache: each step")
plt.plot(np.arange(16, CONTEXT, 32), smooth, color=BLUE, label="with the cache: median of 32")
plt.ylim(0, 1.1 * max(without))
plt.xlabel("position of the token")
plt.ylabel("time of one step (ms)")
plt.legend(frameon=False, loc="upper left")
plt.show()
seconds = np.trapezoid(without, lengths) / 1e3
print(f"{CONTEXT:,} tokens: {sum(with_cache) / 1e3:.2f} s with the cache, {seconds:.1f} s without")

# %% [markdown]
# ## Many requests at a time
# A step of a large model mostly waits for its parameters to come from memory, and for several
# texts they come once. So an engine has a few rows; each request takes one, with its own settings
# and seed, and leaves it to the next when it ends (the picture). A request must not notice its
# neighbours: alone it has the same tokens, with the same bits in their probabilities.

# %%
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request

engine = Engine(model, rows=3, context=128)
beginnings = ["def", "class Error", "import os", "return self", "# This is", "for i in", "if"]
requests = [
    Request(
        prompt_tokens(tokenizer, beginning),
        SamplingConfig(temperature=0.6 + 0.1 * number, top_p=0.95),
        max_tokens=12 + 37 * number % 50,
        seed=number,
        stop_ids=tokenizer.end_ids,
    )
    for number, beginning in enumerate(beginnings)
]
pieces = []  # (request, step of the engine, tokens drawn)
clock = 0
tickets = []
for number, request in enumerate(requests):
    ticket = engine.submit(
        request, lambda piece, number=number: pieces.append((number, clock, len(piece.tokens)))
    )
    tickets.append(ticket)
together = {}
while engine.busy:
    together |= engine.step(8)
    clock += 1

for request, ticket in zip(requests, tickets, strict=True):
    (alone,) = engine.run([request])
    assert np.array_equal(alone.tokens, together[ticket].tokens)
    assert np.array_equal(alone.log_probs, together[ticket].log_probs)  # every bit
print(f"{len(requests)} requests, each the same alone")

plt.figure(figsize=(8, 3), layout="constrained")
for number, when, count in pieces:
    plt.barh(number, 1, left=when, color=BLUE, alpha=0.75, edgecolor="white")
    plt.text(when + 0.5, number, count, ha="center", va="center", color="white", fontsize=8)
plt.yticks(range(len(beginnings)), beginnings, family="monospace")
plt.gca().invert_yaxis()
plt.xlabel("step of the engine; in each, how many tokens were drawn")
plt.title("seven requests share three rows")
plt.show()

# %% [markdown]
# Several samples of one prompt differ in their seeds alone; the prompt is read once and kept
# (`prefixes`).

# %%
engine = Engine(model, rows=4, context=128, prefixes=1)
prompt_ids = prompt_tokens(tokenizer, "def read_")
samples = engine.run(
    [Request(prompt_ids, SamplingConfig(0.8), max_tokens=16, seed=seed) for seed in range(4)]
)
for sample in samples:
    print(repr("def read_" + tokenizer.decode(sample.tokens)))

# %% [markdown]
# Text comes in parts, as it is drawn (parts are divided by `|` here). A *stop text* ends it, and is
# found even where it is spread over two parts: what could be its beginning is held back.

# %%
from genai_jax.decoding.text import stream_text

warm = SamplingConfig(temperature=0.8, forbidden=tokenizer.end_ids)
stream = partial(stream_text, model, tokenizer, "class Reader:", warm, max_tokens=48, seed=1)
parts = list(stream())
print("|".join(parts))

stop = parts[1][-2:] + parts[2][:2]  # half in one part, half in the next
shorter = "".join(stream(stop=[stop]))
print(f"\n--- the same, before {stop!r}:\n{shorter}")
assert shorter == "".join(parts).split(stop)[0]

# %% [markdown]
# ## Output that must be valid
# A regular expression is an automaton; over tokens it says in each state which of them may follow.
# All others get probability 0 before one is drawn. Tokens that act alike are one *class*, so that
# the table is small. Temperature 5 is nearly pure noise, and yet every text matches.

# %%
import re

from genai_jax.constraints.languages import compile_json_schema, compile_regex
from genai_jax.decoding.generate import generate

pattern = r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])( by [A-Z][a-z]{2,8})?"
dates = compile_regex(pattern, tokenizer)
states, classes = dates.successors.shape
print(f"{states} states, {classes} classes of {config.vocab_size:,} tokens")
start = prompt_tokens(tokenizer, "# Written on")
noise = SamplingConfig(temperature=5.0)

free = generate(model, [start], noise, max_tokens=12)[0]
print(f"free:  {tokenizer.decode(free.tokens)!r}")
for result in generate(
    model, [start] * 5, noise, max_tokens=20, automaton=dates, stop_ids=tokenizer.end_ids
):
    text = tokenizer.decode([token for token in result.tokens if token not in tokenizer.end_ids])
    print(f"dates: {text!r}")
    assert re.fullmatch(pattern, text)

# %% [markdown]
# A JSON Schema is compiled to the same kind of table. How can a text be complete when only so many
# tokens may be drawn? The automaton knows each state's *distance*: the fewest tokens to a complete
# text. A token is allowed only if the distance behind it is no more than what is then left.
# So a text may wander for as long as it can still come home: below the line, always.

# %%
import json

schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "kind": {"enum": ["module", "class", "function"]},
        "lines": {"type": "array", "items": {"type": "integer"}, "maxItems": 30},
    },
    "required": ["name", "kind", "lines"],
    "additionalProperties": False,
}
objects = compile_json_schema(schema, tokenizer)
states, classes = objects.successors.shape
print(f"{states} states, {classes} classes of {config.vocab_size:,} tokens")
print(f"the shortest object has {objects.distance[objects.start]} tokens")

BUDGET = 56
results = generate(
    model, [start] * 4, noise, max_tokens=BUDGET, automaton=objects, stop_ids=tokenizer.end_ids
)
figure, panel = plt.subplots(figsize=(7.5, 4), layout="constrained")
panel.plot([0, BUDGET], [BUDGET, 0], color="black", label="tokens left")
panel.fill_between([0, BUDGET], [BUDGET, 0], BUDGET, color="0.92", label="cannot be completed")
styles = zip(results, (BLUE, ORANGE, GREEN, RED), ("-", "--", "-.", ":"), strict=True)
for number, (result, color, style) in enumerate(styles):
    drawn = [int(token) for token in result.tokens if token not in tokenizer.end_ids]
    found = json.loads(tokenizer.decode(drawn))
    assert found.keys() == {"name", "kind", "lines"}
    assert found["kind"] in ("module", "class", "function")
    print(json.dumps(found))
    path = [objects.start]
    for token in drawn:
        path.append(int(objects.successors[path[-1], objects.classes[token]]))
    distance = objects.distance[path]
    assert (distance <= BUDGET - np.arange(len(path))).all()
    assert distance[-1] == 0
    panel.plot(distance, style, color=color, label=f"object {number + 1}")
panel.set(
    xlabel="tokens drawn", ylabel="tokens needed to complete it", xlim=(0, BUDGET), ylim=(0, BUDGET)
)
panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Where the model is surprised
# The same probabilities, of a text that is already there: $-\log p$ of a token is its surprise. A
# white token was certain; a red one no better than a guess among all V, which costs log V nats.
# Below, in two texts that follow `class Point:`, the last word of the second one is wrong: nothing
# there is called so.

# %%
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from genai_jax.evaluation.scoring import score_texts

right = """    def __init__(self, name, value=None):
        self.name = name
        self.value = value
"""
wrong = right.replace("= value\n", "= lemon\n")
scores = score_texts(model, tokenizer, [right, wrong], prompt="class Point:\n")

shade = plt.cm.ScalarMappable(
    Normalize(0, np.log(config.vocab_size)),
    LinearSegmentedColormap.from_list("surprise", ["white", "#F7C46C", RED]),
)

centred = {"family": "monospace", "fontsize": 13, "ha": "center", "va": "center"}


def paint(panel, score):
    """Draw a text, each token on a ground that says its surprise."""
    line = column = widest = 0
    for token, log_prob in zip(score.tokens, score.log_probs, strict=True):
        panel.plot([column, column], [line, line + 0.9], color="0.4", linewidth=0.6)  # it begins
        for letter in tokenizer.decode([int(token)]):
            ground = shade.to_rgba(-log_prob)
            panel.add_patch(Rectangle((column, line), 1, 0.9, facecolor=ground, linewidth=0))
            mark = "↵" if letter == "\n" else letter
            panel.text(column + 0.5, line + 0.45, mark, **centred)
            column += 1
            widest = max(widest, column)
            if letter == "\n":
                line, column = line + 1, 0
    panel.set(xlim=(-0.5, widest + 0.5), ylim=(line + 0.1, -0.2), aspect=2)
    panel.axis("off")


figure, axes = plt.subplots(2, 1, figsize=(7, 3.2), layout="constrained")
for panel, score in zip(axes, scores, strict=True):
    paint(panel, score)
    panel.set_title(f"{-score.log_prob:.1f} nats in all", loc="left", fontsize=10)
figure.colorbar(shade, ax=axes, label="surprise (nats)", extend="max", shrink=0.8)
plt.show()
ratio = scores[0].log_prob - scores[1].log_prob
print(f"log p(right) - log p(wrong) = {ratio:.1f} nats")

# %% [markdown]
# ## The likeliest text is dull
# Taking the likeliest token each time is greedy; *beam search* keeps the W likeliest beginnings
# and finds likelier texts still. But what people write is not the likeliest: it is about as
# surprising as a model expects, and this small model is surprised more often than that. Each mark
# below is a text of 48 tokens: how likely it is, and how many different tokens it has. Code that
# people wrote is on the left, with the samples of temperature 1. What was searched for is far to
# the right, likelier than any of it, and repeats itself.

# %%
from genai_jax.decoding.beam import beam_search
from genai_jax.evaluation.scoring import Query, score_tokens

N, MANY = 48, 24
beginning = "class Reader:\n    def __init__(self, name"
prompt_ids = prompt_tokens(tokenizer, beginning)
groups = {}
for name, temperature, count in (("temperature 1", 1.0, MANY), ("temperature 0.5", 0.5, MANY)):
    groups[name] = generate(
        model, [prompt_ids] * count, SamplingConfig(temperature), max_tokens=N, rows=8
    )
groups["greedy"] = generate(model, [prompt_ids], SamplingConfig(0.0), max_tokens=N, rows=8)
texts = {
    name: [(result.tokens, result.log_probs.mean()) for result in results]
    for name, results in groups.items()
}
texts["beam search, W = 8"] = [
    (found.tokens, found.score) for found in beam_search(model, prompt_ids, beams=8, max_tokens=N)
][:1]
windows = []  # two of each held-out module: N tokens are given, N are scored
for text in data.validation_documents():
    ids = tokenizer.encode(text.decode())
    windows += [ids[i : i + 2 * N] for i in (len(ids) // 4, len(ids) // 2) if i + 2 * N < len(ids)]
held_out = score_tokens(model, [Query(tokenizer.begin_ids, window, N) for window in windows])
texts["held-out code"] = [
    (window[N:], score.log_probs.mean()) for window, score in zip(windows, held_out, strict=True)
]

# A known answer: the score that the search kept is the mean log-probability of its text.
best, score = texts["beam search, W = 8"][0]
(again,) = score_tokens(model, [Query((), np.concatenate([prompt_ids, best]), len(prompt_ids))])
assert np.isclose(again.log_probs.mean(), score, atol=5e-2 if accelerated else 1e-3)

plt.figure(figsize=(7.5, 4), layout="constrained")
looks = {
    "held-out code": ("s", "black", 30),
    "temperature 1": ("o", BLUE, 30),
    "temperature 0.5": ("^", GREEN, 30),
    "greedy": ("D", ORANGE, 70),
    "beam search, W = 8": ("*", RED, 160),
}
for name, (marker, color, size) in looks.items():
    likely = [log_prob for _, log_prob in texts[name]]
    distinct = [len(set(map(int, ids))) for ids, _ in texts[name]]
    plt.scatter(likely, distinct, size, color, marker=marker, label=name, alpha=0.8, linewidths=0)
plt.xlabel("log-probability per token (nats); likelier →")
plt.ylabel(f"different tokens among {N}")
plt.ylim(0, N)
plt.legend(frameon=False, loc="lower left")
plt.show()
for name in ("greedy", "beam search, W = 8", "temperature 1"):
    ids, log_prob = texts[name][0]
    print(f"--- {name}: {log_prob:.2f} nats per token\n{beginning}{tokenizer.decode(ids)}\n")

# %% [markdown]
# ## Try
# 1. Give `typical_p=0.5` a panel. Which tokens does it keep that top-p does not, and why?
# 2. Let greedy decoding have `repetition_penalty=1.3`. Where does its mark move in the last
#    picture, and why is its log-probability still the model's?
# 3. Draw at temperature 0.01 and at 0 from the same prompt. When do they differ?
# 4. Set `CONTEXT` to 4096: which curve of time moves, and which layer's memory grows?
# 5. Set `BUDGET` to the shortest object's tokens, then to one less. What happens?
# 6. Misspell `self` in the heat map. Is the surprise where you would have put it?
# 7. How large must a `logit_bias` be for greedy decoding to take the token that you want?
#
# Trained models of other people's have the same controls: `python experiments/lm_sample.py --help`,
# and `lm_score.py` for the heat map's numbers.
