"""Policies over sets so small that an expectation is a sum: every outcome, or every group of them,
is a row, whose `weight` is its probability under the policy of that moment.

The rows go through the production objective and step, as rollouts would.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genai_jax.objectives.policy_gradient import make_policy_gradient
from genai_jax.objectives.token_log_probs import score_rows
from genai_jax.parallel.mesh import make_mesh
from genai_jax.rl.algorithms import Algorithm
from genai_jax.rl.targets import rollout_targets
from genai_jax.training.passes import ONE_PASS
from genai_jax.training.state import init_state
from genai_jax.training.step import loss_of, make_train_step

# The worked example: four answers of one token.
REFERENCE = np.array([0.5, 0.3, 0.15, 0.05])
SCORES = np.array([0.0, 0.5, 1.0, 2.0])
BETA = 0.5


def variant(preset, loss=None, **advantages):
    """A preset with other options of its loss and of its advantages."""
    return Algorithm(
        dataclasses.replace(preset.loss, **(loss or {})),
        dataclasses.replace(preset.advantages, **advantages),
    )


def tilted(reference, scores, beta):
    """pi_ref exp(r / beta) / Z, and beta log Z."""
    weights = reference * np.exp(np.asarray(scores) / beta)
    return weights / weights.sum(), beta * np.log(weights.sum())


def nodes(tokens, vocab):
    """Number of the text up to each token: 0 for none, 1 + a for a, 1 + V + V a + b for a b, ..."""
    digits, found = jnp.zeros(tokens.shape[0], jnp.int32), []
    for place in range(tokens.shape[1]):
        if place:
            digits = digits * vocab + tokens[:, place]
        found.append((vocab**place - 1) // (vocab - 1) + digits)
    return jnp.stack(found, axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tabular:
    """A policy with logits of its own for every text so far, [nodes, V]."""

    table: jax.Array

    @property
    def config(self):
        return SimpleNamespace(final_softcap=None)

    def hidden(self, tokens, *, positions=None, segment_ids=None, key=None):
        return self.table[nodes(tokens, self.table.shape[1])]

    def head(self):
        return jnp.eye(self.table.shape[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TabularCritic:
    """A value for every text so far."""

    table: jax.Array
    vocab: int = dataclasses.field(metadata={"static": True}, default=4)

    def __call__(self, tokens):
        return self.table[nodes(tokens, self.vocab)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """A policy and its critic."""

    policy: Tabular
    critic: TabularCritic


@jax.jit
def _log_probs(policy, tokens, targets, mask):
    return score_rows(policy, tokens, targets).log_probs * mask


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """All answers: rows of tokens, and which of them count."""

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray

    def log_probs(self, policy):
        """log pi of each counted token [K, T], by the production function."""
        return _log_probs(policy, *map(jnp.asarray, (self.tokens, self.targets, self.mask)))

    def probabilities(self, policy):
        return np.exp(np.asarray(self.log_probs(policy), np.float64).sum(-1))


def letters(count):
    """Answers of one token."""
    return Outcomes(
        np.zeros((count, 1), np.int32),
        np.arange(count, dtype=np.int32)[:, None],
        np.ones((count, 1), np.float32),
    )


def strings(vocab, longest):
    """All strings of up to `longest` tokens, of which 0 ends one."""
    answers = [
        answer
        for length in range(1, longest + 1)
        for answer in itertools.product(range(vocab), repeat=length)
        if 0 not in answer[:-1] and (answer[-1] == 0 or length == longest)
    ]
    targets = np.zeros((len(answers), longest), np.int32)
    mask = np.zeros(targets.shape, np.float32)
    for row, answer in enumerate(answers):
        targets[row, : len(answer)] = answer
        mask[row, : len(answer)] = 1
    tokens = np.zeros_like(targets)
    tokens[:, 1:] = targets[:, :-1]
    return Outcomes(tokens, targets, mask)


def groups_of(outcomes, size):
    """All multisets of that size [M, G], and how many orders each has."""
    members = np.array(list(itertools.combinations_with_replacement(range(outcomes), size)))
    orders = [
        math.factorial(size) // math.prod(map(math.factorial, np.bincount(group)))
        for group in members
    ]
    return members, np.array(orders, np.float32)


def policy_of(model):
    return getattr(model, "policy", model)


def make_population(algorithm, outcomes, reference, scores):
    """Make `(model, beta) -> batch`: all groups that it may write, as rollouts with their chances.

    Args:
        reference: log pi_ref of each token, [K, T].
        scores: Of the outcomes, [K].
    """
    members, orders = groups_of(len(outcomes.mask), algorithm.advantages.group_size)
    of_rows = members.reshape(-1)
    tokens, targets, mask = (
        jnp.asarray(x)[of_rows] for x in (outcomes.tokens, outcomes.targets, outcomes.mask)
    )
    reference, scores = (jnp.asarray(x, jnp.float32)[of_rows] for x in (reference, scores))

    def population(model, beta):
        log_probs = outcomes.log_probs(policy_of(model))
        chances = jnp.exp(log_probs.sum(-1)[members].sum(-1)) * orders
        old = log_probs[of_rows]
        values = model.critic(tokens) if hasattr(model, "critic") else None
        learned = rollout_targets(
            algorithm.advantages, scores, mask, old - reference, beta, values=values
        )
        batch = {
            "tokens": tokens,
            "targets": targets,
            "loss_mask": learned.loss_mask,
            "advantages": learned.advantages,
            "old_log_probs": old,
            "ref_log_probs": reference,
            "weight": jnp.repeat(chances, members.shape[1]),
        }
        if values is not None:
            batch |= {"returns": learned.returns, "old_values": values}
        return batch

    return population


def gradient_of(algorithm, model, batch, context=None):
    """The gradient of the production loss, and its terms."""
    objective = make_policy_gradient(algorithm.loss)
    batch = jax.tree.map(jnp.asarray, batch)

    def loss(model):
        terms = objective(model, batch, context)
        totals = {name: term.weight for name, term in terms.items()}
        return loss_of(terms, totals), terms

    return jax.grad(loss, has_aux=True)(model)


def make_training(
    algorithm, model, population, *, optimizer, context, passes=ONE_PASS, next_context=None
):
    """Make `(updates, context) -> model`: that many steps from the model, each on what the policy
    of that moment writes. Of several numbers of updates, in order: the models after each."""
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(lambda: model, optimizer, mesh, (), context=context)
    step = make_train_step(
        make_policy_gradient(algorithm.loss),
        optimizer,
        mesh,
        state,
        seed=0,
        clip_norm=None,
        passes=passes,
        next_context=next_context,
    )

    def one(_, carried):
        state, most = carried
        state, metrics = step(state, population(state.model, state.context["beta"]))
        total, weight = metrics["first_log_ratio"]
        return state, jnp.maximum(most, total / weight)

    run = jax.jit(lambda count, carried: jax.lax.fori_loop(0, count, one, carried))

    def training(updates, context=context):
        carried = dataclasses.replace(state, context=context), jnp.zeros(())
        models, done = [], 0
        for until in np.atleast_1d(updates).tolist():
            carried = run(until - done, carried)
            done = until
            models.append(carried[0].model)
        # What wrote the rows is what the first update of each step finds.
        assert float(carried[1]) < 1e-6
        return models if np.ndim(updates) else models[0]

    return training


def optimum_reached(
    algorithm, *, scores=SCORES, reference=REFERENCE, beta=BETA, rate=4.0, updates=400
):
    """Train a policy of one token from the reference; returns its probabilities.

    Of several numbers of updates, those after each of them.
    """
    outcomes = letters(len(reference))
    log_reference = np.log(reference)[:, None]
    population = make_population(algorithm, outcomes, log_reference, scores)
    context = {"beta": jnp.float32(beta)}
    model = Tabular(jnp.asarray(log_reference.T, jnp.float32))
    training = make_training(
        algorithm, model, population, optimizer=optax.sgd(rate), context=context
    )
    trained = training(updates)
    return (
        [outcomes.probabilities(x) for x in trained]
        if np.ndim(updates)
        else (outcomes.probabilities(trained))
    )
