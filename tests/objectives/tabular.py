"""Policies and rewards that are free to be anything, and populations that fit into one batch.

A batch enumerates all outcomes, each with its probability as `weight`, so that the production
objective is the exact expectation, and the production step optimises it.
"""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.passes import Passes
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Policy:
    """p(answer | prompt) = softmax(table[prompt]); answers are one token."""

    table: jax.Array

    @property
    def config(self):
        return SimpleNamespace(final_softcap=None)

    def hidden(self, tokens, *, positions=None, segment_ids=None, key=None):
        return self.table[tokens]

    def head(self):
        return jnp.eye(self.table.shape[1])

    def probabilities(self):
        logits = np.asarray(self.table, np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)


def policy_of(probabilities) -> Policy:
    return Policy(jnp.log(jnp.asarray(probabilities, jnp.float32)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rewards:
    """r(prompt, answer) = table[prompt, answer], read at the last token."""

    table: jax.Array

    def at_end(self, tokens, lengths):
        last = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[:, None], 1)[:, 0]
        return self.table[tokens[:, 0], last] * (lengths > 0)


def answer_rows(prompts, answers, weight, **more):
    """Rows of answers of one token: prompts [B], answers [B, K] (-1 = none), weight [B]."""
    answers = np.asarray(answers)
    exists = answers >= 0
    tokens = np.zeros((*answers.shape, 2), np.int32)
    tokens[..., 0] = np.asarray(prompts)[:, None]
    tokens[..., 1] = np.maximum(answers, 0)
    targets = np.zeros_like(tokens)
    targets[..., 0] = tokens[..., 1]
    loss_mask = np.zeros(tokens.shape, np.float32)
    loss_mask[..., 0] = exists
    return {
        "tokens": tokens * exists[..., None],
        "targets": targets,
        "loss_mask": loss_mask,
        "lengths": np.where(exists, 2, 0).astype(np.int32),
        "answer_mask": exists.astype(np.float32),
        "weight": np.asarray(weight, np.float32),
        **{name: np.asarray(x, np.float32) for name, x in more.items()},
    }


def pair_rows(rates, *, margin=None, signed=False):
    """All ordered pairs of different answers: `rates` [P, n, n] say how often a beats b.

    Args:
        rates: Of a (row) over b (column), for each prompt.
        margin: m of the pair a < b; the pair (b, a) has -m if signed, else m.
        signed: Whether the margin flips with the label.
    """
    rates = np.asarray(rates, np.float64)
    count, n, _ = rates.shape
    places = list(itertools.product(range(count), itertools.permutations(range(n), 2)))
    prompts = [x for x, _ in places]
    pairs = np.array([pair for _, pair in places])
    weight = rates[prompts, pairs[:, 0], pairs[:, 1]]
    more = {}
    if margin is not None:
        sign = np.where((pairs[:, 0] > pairs[:, 1]) & signed, -1.0, 1.0)
        more["margin"] = margin * sign
    return answer_rows(prompts, pairs, weight, **more)


def bradley_terry(rewards):
    """How often each answer beats each other: [P, n] to [P, n, n]."""
    rewards = np.asarray(rewards, np.float64)
    return 1 / (1 + np.exp(-(rewards[:, :, None] - rewards[:, None])))


def two_answers(rates):
    """Prompts of two answers, the first preferred at the given rate."""
    rates = np.asarray(rates, np.float64)
    table = np.full((len(rates), 2, 2), 0.5)
    table[:, 0, 1], table[:, 1, 0] = rates, 1 - rates
    return table


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def tilted(reference, rewards, beta):
    """The policy pi_ref exp(r / beta) / Z, row by row."""
    log_p = np.log(reference) + np.asarray(rewards) / beta
    p = np.exp(log_p - log_p.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def bisect(increasing, low, high):
    """The root of an increasing function, elementwise, to 2^-60 of the interval."""
    for _ in range(60):
        middle = (low + high) / 2
        above = increasing(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def optimise(
    objective,
    model,
    batch,
    *,
    context=None,
    batch_means=None,
    updates=1000,
    learning_rate=0.1,
    stages=1,
):
    """Minimise the expectation over a whole population, by Adam whose rate falls to zero.

    Returns the models after each of `stages` equal parts of the updates, and the metrics of the
    last part.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    schedule = optax.cosine_decay_schedule(learning_rate, updates)
    optimizer = optax.adam(schedule)
    state = init_state(lambda: model, optimizer, mesh, (), context=context)
    step = make_train_step(
        objective,
        optimizer,
        mesh,
        state,
        seed=0,
        clip_norm=None,
        batch_means=batch_means,
        passes=Passes(epochs=updates // stages),
    )
    models = []
    for _ in range(stages):
        state, metrics = step(state, batch)
        models.append(jax.tree.map(jnp.copy, state.model))
    return models, {name: float(a) / float(b) for name, (a, b) in metrics.items()}
