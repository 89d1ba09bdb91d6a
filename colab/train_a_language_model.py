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
# # Train a language model
#
# Follow one batch from text to updated parameters, look at what attention looks at, train, and let
# the model write. Runs on a TPU, a GPU or a CPU, and chooses its sizes by it: minutes on each.
#
# Every step below is a call into the library, so that each can be opened and read. The path is
# the one of `experiments/lm_pretrain.py`: data → model → objective → step → sampling.

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

# %% [markdown]
# ## Sizes
# `STEPS` may be set in the environment, for a quick look.

# %%
from genai_jax.nn.config import TransformerConfig

accelerated = jax.default_backend() != "cpu"
LENGTH = 256 if accelerated else 64  # T, tokens of a row
ROWS = 64 if accelerated else 16  # B, rows of a batch
STEPS = int(os.environ.get("STEPS", 1000 if accelerated else 200))

config = TransformerConfig(
    num_layers=6 if accelerated else 2,
    embed_dim=384 if accelerated else 64,
    num_heads=6 if accelerated else 2,
    max_length=LENGTH,
    init_std=0.05,
    dtype="bfloat16" if accelerated else "float32",
)

# %% [markdown]
# ## Text
# The manual of the Python language, which every Python carries. A tenth of the documents is held
# out, and a vocabulary of 1,024 pieces is learnt from the rest (byte-pair encoding).

# %%
from genai_jax.data.text import TextConfig, load_text

data = load_text(TextConfig(sources=("reference",), vocab_size=1024), length=LENGTH, seed=0)
print(data.summary)

# %%
sentence = "The following identifiers are used as reserved words."
ids = data.tokenizer.encode(sentence)
print([data.tokenizer.decode([int(i)]) for i in ids])
print(ids)
assert data.tokenizer.decode(ids) == sentence  # nothing is lost

# %% [markdown]
# ## One batch
# Documents are cut into rows of equal length, without padding. `segment_ids` number the documents
# of a row (a document sees itself only), `positions` begin anew with each, and the target of a
# token is the token after it. The batch of step s is a pure function of (seed, s): any step can be
# made again.

# %%
from genai_jax.data.loader import Loader
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding

mesh = make_mesh()
loader = Loader(data.train, ROWS, sharding=batch_sharding(mesh))
# Of the first steps the one in which most documents end.
ends = [(int((np.asarray(loader.batch(s)["segment_ids"]) > 1).sum()), s) for s in range(20)]
batch = loader.batch(max(ends)[1])
for name, array in batch.items():
    print(f"{name:12} {array.dtype} {array.shape}")
counted = batch["loss_mask"][:, :-1] > 0
assert (batch["tokens"][:, 1:] == batch["targets"][:, :-1])[counted].all()

figure, axes = plt.subplots(1, 2, figsize=(12, 3), layout="constrained")
for panel, name in zip(axes, ("segment_ids", "positions"), strict=True):
    image = panel.imshow(np.asarray(batch[name]), aspect="auto", cmap="viridis")
    panel.set(title=name, xlabel="token", ylabel="row")
    figure.colorbar(image, ax=panel)
plt.show()

# %% [markdown]
# ## The model
# An immutable pytree of parameters that can be called. Nothing is hidden in it: no state, no noise.

# %%
from genai_jax.models import lm
from genai_jax.paths import named_leaves

config = lm.fit_vocabulary(config, data.tokenizer.vocab_size)
model = lm.LanguageModel(config, jax.random.key(0))
for name, leaf in named_leaves(model):
    print(f"{name:36} {leaf.shape}")
print(f"{lm.count_parameters(config):,} parameters")

# %% [markdown]
# ## The loss
# The objective gives sums and weights; the loss is their quotient, in nats per token. A model that
# knows nothing finds all V tokens about equally likely: log V nats.

# %%
from genai_jax.objectives.next_token import next_token


@jax.jit
def loss_of(model, batch):
    term = next_token(model, batch, None)["loss"]
    return term.sum / term.weight


print(f"loss {loss_of(model, batch):.3f}, log V {np.log(config.vocab_size):.3f}")

# %% [markdown]
# ## One update
# Gradient, optimizer, new parameters; the loss of the same batch falls.

# %%
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.schedules import ScheduleConfig, make_schedule
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step

schedule = make_schedule(
    ScheduleConfig(1e-2, "linear", warmup_steps=min(20, STEPS // 2), final_fraction=0.0), STEPS
)
optimizer = make_optimizer(
    OptimizerConfig("muon"), schedule, decays=lm.decays, muon=lm.hidden_matrix
)
state = init_state(
    lambda: lm.LanguageModel(config, jax.random.key(0)), optimizer, mesh, lm.SHARDING_RULES
)
train_step = make_train_step(next_token, optimizer, mesh, state, seed=0)

before = float(loss_of(state.model, batch))
losses = []
for _ in range(3):  # the state is donated: the old one is gone, its memory used again
    state, metrics = train_step(state, batch)
    total, weight = metrics["loss"]
    losses.append(float(total / weight))
print(f"loss before {before:.4f}; of three updates on the same batch: {np.round(losses, 4)}")
assert np.isclose(losses[0], before, rtol=1e-2 if accelerated else 1e-4)
assert losses[-1] < losses[0]

# %% [markdown]
# ## Train
# `experiments/lm_pretrain.py` adds evaluation, checkpoints and resuming to this loop.

# %%
state = init_state(
    lambda: lm.LanguageModel(config, jax.random.key(0)), optimizer, mesh, lm.SHARDING_RULES
)
losses = []
for step in range(STEPS):
    state, metrics = train_step(state, loader.batch(step))
    total, weight = metrics["loss"]
    losses.append(float(total / weight))
    if step % max(1, STEPS // 10) == 0:
        print(f"step {step:5}  loss {losses[-1]:.3f}")
loader.close()

from genai_jax.evaluation.likelihood import make_text_evaluator

evaluate = make_text_evaluator(next_token, mesh, data.validation, ROWS, data.validation_bytes)
print(evaluate(state.model, lambda: None))

plt.figure(figsize=(7, 3.5), layout="constrained")
plt.plot(losses)
plt.axhline(np.log(config.vocab_size), color="gray", linestyle=":", label="log V: knows nothing")
plt.xlabel("step")
plt.ylabel("loss (nats per token)")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What attention looks at
# The first layer, by hand: normalise, project to queries and keys, rotate by position, take
# products, hide the future, softmax. That these are the probabilities which the model itself uses
# is checked in the last line.

# %%
from genai_jax.nn.rope import apply_rope
from genai_jax.nn.transformer import Surroundings, make_rope

trained = jax.device_put(state.model, jax.devices()[0])
shown = data.tokenizer.encode(sentence)[:LENGTH]
tokens = jnp.asarray(shown)[None]
positions = jnp.arange(len(shown))[None]

block = trained.layers[0]
rope = make_rope(trained.config, positions)
x = block.attention_norm(trained.embed(tokens, positions))
query = apply_rope(block.attention.query(x), rope["global"])
key = apply_rope(block.attention.key(x), rope["global"])
logits = jnp.einsum("btnh,bsnh->bnts", query, key) * config.query_scale
past = jnp.tril(jnp.ones((len(shown), len(shown)), bool))
probabilities = jax.nn.softmax(jnp.where(past, logits.astype(jnp.float32), -jnp.inf))

mixed = jnp.einsum("bnts,bsnh->btnh", probabilities.astype(x.dtype), block.attention.value(x))
used, _ = block.attention(x, "global", Surroundings(rope))
np.testing.assert_allclose(block.attention.output(mixed), used, atol=5e-2 if accelerated else 1e-4)

pieces = [data.tokenizer.decode([int(i)]) for i in shown]
heads = probabilities.shape[1]
figure, axes = plt.subplots(1, heads, figsize=(4.2 * heads, 4.2), layout="constrained")
for head, panel in enumerate(np.atleast_1d(axes)):
    panel.imshow(np.asarray(probabilities[0, head]), cmap="magma")
    panel.set_title(f"layer 0, head {head}")
    panel.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=6)
    panel.set_yticks(range(len(pieces)), pieces, fontsize=6)
plt.show()

# %% [markdown]
# No prediction depends on what comes after it: change the last token, and only its own changes.

# %%
changed = tokens.at[0, -1].set((tokens[0, -1] + 1) % config.vocab_size)
difference = jnp.abs(trained(tokens) - trained(changed)).max(-1)[0]
assert (difference[:-1] == 0).all()
assert difference[-1] > 0

# %% [markdown]
# ## Let it write
# Token by token, drawn from the model's probabilities; a lower temperature keeps to the likely.

# %%
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import stream_text

for temperature in (0.0, 0.5, 1.0):
    text = stream_text(
        trained,
        data.tokenizer,
        "The ",
        SamplingConfig(temperature),
        max_tokens=min(60, LENGTH - 8),
        seed=0,
    )
    print(f"--- temperature {temperature}\nThe {''.join(text)}")

# %% [markdown]
# ## Further
# `python experiments/lm_pretrain.py` trains on Python's own source code, resumes after any
# interruption, and compares the result with `xz -9`. `--help` explains every option.
