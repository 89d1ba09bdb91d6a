"""Microbatches, devices, padding and the places of absent answers change no loss and no gradient.

All objectives on answers at once, so that each way to compute them is compiled once: on tables of
logits and of rewards, which compile fast; and two of them on transformers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.heads import ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.distillation import DistillationConfig, make_distillation
from genai_jax.objectives.kto import KTOConfig, make_kto
from genai_jax.objectives.preference import PreferenceConfig, make_preference
from genai_jax.objectives.reward_model import RewardLossConfig, make_reward_model_objective
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.step import make_gradients
from tests.objectives.tabular import Policy, Rewards

B, K, T, V = 16, 4, 6, 11
CONFIG = TransformerConfig(
    vocab_size=V, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=16, max_length=12, init_std=0.4
)
KTO, KTO_MEANS = make_kto(KTOConfig(beta=0.5, desirable_weight=1.3, reference="live"))
ON_PAIRS = {
    "dpo": make_preference(PreferenceConfig("dpo", reference="live")),
    "ipo": make_preference(PreferenceConfig("ipo", beta=1.0, length_normalised=True)),
    "orpo": make_preference(PreferenceConfig("orpo")),
    "kto": KTO,
}
ON_RANKINGS = {
    "pairs": make_reward_model_objective(RewardLossConfig("bradley_terry", 0.1)),
    "rankings": make_reward_model_objective(RewardLossConfig("plackett_luce")),
}
DISTILLATION = make_distillation(DistillationConfig("jensen_shannon", 2.0))


def pairs_of(batch):
    """The first two answers, of which one may be missing."""
    wide = ("tokens", "targets", "loss_mask", "lengths", "answer_mask", "ref_log_probs")
    return batch | {name: batch[name][:, :2] for name in wide}


def everything(model, batch, context):
    """Compute the terms of all objectives."""
    pairs = pairs_of(batch)
    first = {name: batch[name][:, 0] for name in ("tokens", "targets", "loss_mask")}
    parts = {name: f(model["policy"], pairs, context) for name, f in ON_PAIRS.items()}
    parts |= {name: f(model["reward"], batch, context) for name, f in ON_RANKINGS.items()}
    parts["distillation"] = DISTILLATION(model["policy"], first, context)
    return {
        f"{name}/{term}": value for name, terms in parts.items() for term, value in terms.items()
    }


def means(model, batch, context):
    return KTO_MEANS(model["policy"], pairs_of(batch), context)


def make_batch():
    """Answers of different lengths, some absent, some rows not counted."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, K, T + 1)).astype(np.int32)
    lengths = rng.integers(2, T + 1, (B, K)).astype(np.int32)
    exists = np.ones((B, K), np.float32)
    exists[2, 1:] = exists[5, 3] = exists[9, 2:] = 0
    lengths *= exists.astype(np.int32)
    real = np.arange(T) < lengths[..., None]
    return {
        "tokens": ids[..., :-1] * real,
        "targets": ids[..., 1:],
        "loss_mask": (real & (np.arange(T) > 0)).astype(np.float32),
        "lengths": lengths,
        "answer_mask": exists,
        "ref_log_probs": rng.normal(-5, 1, (B, K)).astype(np.float32),
        "margin": rng.normal(size=B).astype(np.float32),
        "desirable": rng.integers(0, 2, B).astype(np.float32),
        "weight": rng.integers(0, 3, B).astype(np.float32),
    }


def tables():
    rng = np.random.default_rng(1)
    # Answers at random are likelier to the policy than to a sharper reference: KTO's z is above 0.
    policy, reference, rewards = jnp.asarray(rng.normal(size=(3, V, V)), jnp.float32)
    reference = 2 * reference
    model = {"policy": Policy(policy), "reward": Rewards(rewards)}
    return model, {"reference": Policy(reference), "teacher": Policy(reference)}


def transformers():
    policy, reference, trunk = (LanguageModel(CONFIG, jax.random.key(i)) for i in range(3))
    model = {"policy": policy, "reward": ScalarModel(trunk, jax.random.key(3))}
    return model, {"reference": reference}


def compute(
    batch, *, devices=1, fsdp=1, microbatches=1, models=tables, objective=everything, first=means
):
    mesh = make_mesh(fsdp, devices=jax.devices()[:devices])
    model, context = models()
    gradients_of = jax.jit(make_gradients(objective, mesh, microbatches, batch_means=first))
    batch = jax.device_put(batch, batch_sharding(mesh))
    gradients, metrics = gradients_of(model, batch, context)
    values = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
    return [np.asarray(x) for x in jax.tree.leaves(gradients)], values


@pytest.fixture(scope="module")
def wanted():
    return compute(make_batch())


def assert_same(found, wanted):
    gradients, values = found
    for a, b in zip(gradients, wanted[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    assert values == pytest.approx(wanted[1], rel=1e-5, abs=1e-5)


def test_the_baseline_of_kto_is_felt(wanted):
    """Otherwise its invariance would say nothing."""
    assert wanted[1]["kto/kl"] > 0.01


def padded():
    """The same with three tokens more, whose ids would be answers."""
    batch = make_batch()
    for name in ("tokens", "targets", "loss_mask"):
        batch[name] = np.pad(batch[name], ((0, 0), (0, 0), (0, 3)))
    padding = np.arange(T + 3) >= batch["lengths"][..., None]
    return batch | {"tokens": np.where(padding, 7, batch["tokens"])}


def reordered():
    """The same rows in another order, and in one of them the absent answer at another place."""
    order = np.random.default_rng(1).permutation(B)
    batch = {name: x[order] for name, x in make_batch().items()}
    row = list(order).index(5)
    for name in ("tokens", "targets", "loss_mask", "lengths", "answer_mask", "ref_log_probs"):
        batch[name][row] = batch[name][row][[0, 1, 3, 2]]
    assert batch["answer_mask"][row].tolist() == [1, 1, 0, 1]
    return batch


@pytest.mark.parametrize(
    ("make", "devices", "fsdp", "microbatches"),
    [(make_batch, 1, 1, 4), (reordered, 8, 1, 2), (padded, 8, 2, 1)],
)
def test_microbatches_devices_order_and_padding_change_nothing(
    wanted, make, devices, fsdp, microbatches
):
    found = compute(make(), devices=devices, fsdp=fsdp, microbatches=microbatches)
    assert_same(found, wanted)


def test_transformers_see_neither_padding_nor_devices_nor_microbatches():
    def objective(model, batch, context):
        dpo = ON_PAIRS["dpo"](model["policy"], pairs_of(batch), context)
        rankings = ON_RANKINGS["rankings"](model["reward"], batch, context)
        return {"dpo": dpo["loss"], "rankings": rankings["loss"]}

    options = {"models": transformers, "objective": objective, "first": None}
    one = compute(make_batch(), **options)
    assert_same(compute(padded(), devices=8, microbatches=2, **options), one)
