"""Divergences from a teacher beside float64, their optima, and what chunks must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.distillation import (
    DistillationConfig,
    divergence_of,
    make_distillation,
)
from genai_jax.objectives.next_token import next_token
from tests.objectives.tabular import optimise, policy_of

B, T, V = 2, 12, 19
STUDENT = TransformerConfig(
    vocab_size=V,
    num_layers=1,
    embed_dim=8,
    num_heads=2,
    mlp_dim=16,
    max_length=T,
    init_std=0.4,
    final_softcap=3.0,
)
TEACHER = TransformerConfig(
    vocab_size=V, num_layers=1, embed_dim=12, num_heads=3, mlp_dim=16, max_length=T, init_std=0.4
)
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def definition(config, student, teacher):
    q = np.exp(log_softmax(student / config.temperature))
    p = np.exp(log_softmax(teacher / config.temperature))

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    if config.divergence == "forward_kl":
        return kl(p, q)
    if config.divergence == "reverse_kl":
        return kl(q, p)
    m = config.mixture * p + (1 - config.mixture) * q
    return config.mixture * kl(p, m) + (1 - config.mixture) * kl(q, m)


def config_of(divergence, **options):
    if divergence == "jensen_shannon":
        options["mixture"] = 0.3
    return DistillationConfig(divergence, **options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_divergences_and_gradients_are_the_definitions(divergence, temperature):
    """The gradient by central differences of the float64 definition."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 4, 7)) * 2
    config = config_of(divergence, temperature=temperature)

    @jax.jit
    @jax.value_and_grad
    def total(x):
        return divergence_of(config, x, jnp.float32(teacher)).sum()

    value, gradient = total(jnp.float32(student))
    np.testing.assert_allclose(value, definition(config, student, teacher).sum(), rtol=1e-5)
    for place in ((0, 0), (2, 3), (3, 6)):
        step = np.zeros_like(student)
        step[place] = 1e-5
        ends = [definition(config, student + s, teacher).sum() for s in (step, -step)]
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-5)


def test_mixtures_end_in_the_two_kls():
    """JS_b / b goes to KL(P||Q) as b goes to 0, JS_b / (1 - b) to KL(Q||P) as it goes to 1."""
    rng = np.random.default_rng(1)
    student, teacher = jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32)
    for mixture, divergence, share in ((1e-3, "forward_kl", 1e-3), (1 - 1e-3, "reverse_kl", 1e-3)):
        near = divergence_of(
            DistillationConfig("jensen_shannon", mixture=mixture), student, teacher
        )
        wanted = divergence_of(DistillationConfig(divergence), student, teacher)
        np.testing.assert_allclose(near / share, wanted, rtol=2e-2)


@pytest.fixture(scope="module")
def models():
    student, teacher = (
        LanguageModel(STUDENT, jax.random.key(0)),
        LanguageModel(TEACHER, jax.random.key(1)),
    )
    rng = np.random.default_rng(2)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "loss_mask": (rng.random((B, T)) < 0.6).astype(np.float32),
        "segment_ids": np.repeat([[1, 2]], 6, 1).repeat(B, 0).astype(np.int32),
        "positions": np.tile(np.arange(6), (B, 2)).astype(np.int32),
    }
    return student, teacher, jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize(
    ("divergence", "chunks"),
    [("forward_kl", (None, 4)), ("reverse_kl", (1,)), ("jensen_shannon", (4,))],
)
def test_the_loss_of_two_models_is_the_definition_whatever_the_chunks(models, divergence, chunks):
    student, teacher, batch = models
    config = config_of(divergence, temperature=2.0, weight=0.7)
    places = {name: batch[name] for name in ("positions", "segment_ids")}
    logits = [
        np.asarray(jax.jit(lambda m: m.logits(m.hidden(batch["tokens"], **places)))(m), np.float64)
        for m in (student, teacher)
    ]
    mask = np.asarray(batch["loss_mask"])
    apart = (mask * definition(config, *logits)).sum()
    nll = jax.jit(next_token)(student, batch)["loss"].sum

    gradients = []
    for chunk in chunks:
        objective = make_distillation(config, chunk=chunk)

        @jax.jit
        def compute(model, objective=objective):
            def loss(model):
                terms = objective(model, batch, {"teacher": teacher})
                return terms["loss"].sum, terms

            return jax.value_and_grad(loss, has_aux=True)(model)

        (_, terms), gradient = compute(student)
        np.testing.assert_allclose(terms["divergence"].sum, apart, rtol=2e-5)
        np.testing.assert_allclose(terms["nll"].sum, nll, rtol=1e-5)
        np.testing.assert_allclose(terms["loss"].sum, 0.7 * 4 * apart + 0.3 * nll, rtol=2e-5)
        agree = mask * (logits[0].argmax(-1) == logits[1].argmax(-1))
        assert float(terms["agreement"].sum) == pytest.approx(agree.sum())
        assert float(terms["loss"].weight) == mask.sum()
        gradients.append(jax.tree.leaves(gradient))
    for other in gradients[1:]:
        for a, b in zip(other, gradients[0], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_logits_of_a_batch_are_never_in_memory():
    """Sixteen chunks of a row need a fraction of the scratch of one."""
    config = dataclasses.replace(STUDENT, vocab_size=2048, max_length=64)
    student, teacher = (LanguageModel(config, jax.random.key(i)) for i in range(2))
    ids = jnp.zeros((4, 64), jnp.int32)
    batch = {"tokens": ids, "targets": ids, "loss_mask": jnp.ones((4, 64))}

    def scratch(chunk):
        objective = make_distillation(DistillationConfig(), chunk=chunk)
        gradient = jax.jit(
            jax.grad(lambda m: objective(m, batch, {"teacher": teacher})["loss"].sum)
        )
        return gradient.lower(student).compile().memory_analysis().temp_size_in_bytes

    assert scratch(4) < 0.3 * scratch(64)


TABLE = np.array([[0.6, 0.25, 0.1, 0.05], [0.1, 0.2, 0.3, 0.4]])
DATA = np.array([[0.1, 0.1, 0.4, 0.4], [0.7, 0.1, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("divergence", "weight", "wanted"),
    [
        ("forward_kl", 1.0, TABLE),
        ("reverse_kl", 1.0, TABLE),
        ("jensen_shannon", 1.0, TABLE),
        ("forward_kl", 0.25, 0.25 * TABLE + 0.75 * DATA),
    ],
)
def test_a_free_student_reaches_the_teacher_or_its_mixture_with_the_data(
    divergence, weight, wanted
):
    places = [(prompt, answer) for prompt in range(2) for answer in range(4)]
    batch = {
        "tokens": np.array([[prompt] for prompt, _ in places], np.int32),
        "targets": np.array([[answer] for _, answer in places], np.int32),
        "loss_mask": np.array([[DATA[place]] for place in places], np.float32),
    }
    models, metrics = optimise(
        make_distillation(config_of(divergence, weight=weight)),
        policy_of(np.ones((2, 4)) / 4),
        batch,
        context={"teacher": policy_of(TABLE)},
        stages=10,
    )
    np.testing.assert_allclose(models[-1].probabilities(), wanted, atol=1e-3)
    if weight == 1:
        assert metrics["divergence"] == pytest.approx(0, abs=1e-5)
        assert metrics["agreement"] == pytest.approx(1)


def test_what_has_no_meaning_or_is_missing_is_said(models):
    student, _, batch = models
    with pytest.raises(ValueError, match="`temperature` must be above 0; got 0"):
        DistillationConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"`mixture` must be in \(0, 1\); got 1"):
        DistillationConfig("jensen_shannon", mixture=1.0)
    with pytest.raises(ValueError, match="`mixture` belongs to jensen_shannon"):
        DistillationConfig(mixture=0.3)
    with pytest.raises(ValueError, match=r"`weight` must be in \[0, 1\]; got 2"):
        DistillationConfig(weight=2.0)
    with pytest.raises(ValueError, match=r"context\['teacher'\]; got none"):
        jax.eval_shape(make_distillation(), student, batch, {})
    with pytest.raises(ValueError, match="The teacher must have the model's vocabulary; got 4"):
        jax.eval_shape(make_distillation(), student, batch, {"teacher": policy_of(TABLE)})
    with pytest.raises(ValueError, match="`chunk` must divide the row; got 5 and 12 tokens"):
        jax.eval_shape(make_distillation(chunk=5), student, batch, {"teacher": student})
