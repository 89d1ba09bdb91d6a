import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import cross_entropy, next_token

B, T, D, V = 3, 12, 8, 21


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    head = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    mask = jax.random.bernoulli(keys[3], 0.7, (B, T)).astype(jnp.float32)
    return hidden, head, targets, mask


def dense(hidden, head, targets, mask, z_weight=0.0, softcap=None):
    """The definition, all logits at once, differentiated by JAX."""
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_z = jax.nn.logsumexp(logits, -1)
    nll = log_z - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    correct = (jnp.argmax(logits, -1) == targets) * mask
    sums = (jnp.sum(mask * nll), jnp.sum(mask * log_z**2), jnp.sum(correct))
    return (sums[0] + z_weight * sums[1], *sums)


@pytest.mark.parametrize("chunk", [None, 1, 4, 12])
@pytest.mark.parametrize(("z_weight", "softcap"), [(0.0, None), (0.1, None), (0.1, 2.0)])
def test_chunks_give_the_dense_sums_and_gradients(chunk, z_weight, softcap):
    arguments = inputs()
    options = {"z_weight": z_weight, "softcap": softcap}

    def value_and_gradients(function):
        def loss(hidden, head):
            sums = function(hidden, head, *arguments[2:])
            return 3.0 * sums[0], sums

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*arguments[:2])

    expected = value_and_gradients(functools.partial(dense, **options))
    actual = value_and_gradients(functools.partial(cross_entropy, chunk=chunk, **options))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_without_knowledge_the_loss_is_log_v():
    hidden, head, targets, mask = inputs()
    sums = cross_entropy(0 * hidden, head, targets, mask)
    assert float(sums.nll / mask.sum()) == pytest.approx(math.log(V), rel=1e-6)


def test_logits_of_the_whole_batch_never_exist():
    vocabulary = 65_536
    shapes = [
        jax.ShapeDtypeStruct((4, 256, 16), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, 16), jnp.float32),
        jax.ShapeDtypeStruct((4, 256), jnp.int32),
        jax.ShapeDtypeStruct((4, 256), jnp.float32),
    ]

    def loss(hidden, head, targets, mask):
        return cross_entropy(hidden, head, targets, mask).total

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*shapes)
    sizes = [math.prod(variable.aval.shape) for variable in _variables(jaxpr.jaxpr)]
    assert max(sizes) <= max(2**22, vocabulary * 16)


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _variables(inner)


def test_chunks_must_divide_the_row():
    with pytest.raises(ValueError, match="`chunk` must divide the row; got 5 and 12"):
        cross_entropy(*inputs(), chunk=5)


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        vocab_size=V, num_layers=1, embed_dim=8, num_heads=2, max_length=T, init_std=0.3
    )
    return LanguageModel(config, jax.random.key(0))


def batch():
    ids = jax.random.randint(jax.random.key(1), (B, T + 1), 0, V)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "loss_mask": inputs()[3]}


def test_objective_is_the_mean_over_counted_tokens(model):
    made = batch()
    log_p = jax.nn.log_softmax(model(made["tokens"]))
    chosen = np.take_along_axis(np.asarray(log_p), np.asarray(made["targets"])[..., None], -1)
    mask = np.asarray(made["loss_mask"])
    terms = next_token(model, made, z_loss=0.0)
    assert terms.keys() == {"loss", "accuracy"}
    assert float(terms["loss"].sum) == pytest.approx(-np.sum(mask * chosen[..., 0]), rel=1e-5)
    assert float(terms["loss"].weight) == mask.sum()
    assert terms["accuracy"].coefficient == 0.0


def test_z_loss_is_added_and_reported(model):
    plain, with_z = (next_token(model, batch(), z_loss=z) for z in (0.0, 0.5))
    assert with_z.keys() == {"loss", "nll", "z", "accuracy"}
    assert float(with_z["nll"].sum) == pytest.approx(float(plain["loss"].sum), rel=1e-6)
    expected = with_z["nll"].sum + 0.5 * with_z["z"].sum
    assert float(with_z["loss"].sum) == pytest.approx(float(expected), rel=1e-6)


def test_the_objective_asks_little_of_a_model():
    hidden, head, _, _ = inputs()
    stub = SimpleNamespace(
        config=SimpleNamespace(final_softcap=None),
        hidden=lambda tokens, **_: hidden,
        head=lambda: head,
    )
    made = batch()
    expected = dense(hidden, head, made["targets"], made["loss_mask"])[0]
    assert float(next_token(stub, made)["loss"].sum) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("chunk", [2, 16])
def test_a_head_that_is_frozen_has_no_gradient(chunk):
    """By the compiler's analysis: neither kept nor computed where nobody asks for it."""
    hidden, head = jnp.zeros((1, 16, 64)), jnp.zeros((4096, 64))
    targets, mask = jnp.zeros((1, 16), jnp.int32), jnp.ones((1, 16))

    def total(hidden, head):
        return cross_entropy(hidden, head, targets, mask, chunk=chunk).total

    said = {}
    for wanted in ((0,), (0, 1)):
        compiled = jax.jit(jax.grad(total, wanted)).lower(hidden, head).compile()
        memory = compiled.memory_analysis()
        held = memory.temp_size_in_bytes + memory.output_size_in_bytes
        said[wanted] = held, compiled.cost_analysis()["flops"]
    assert said[0, 1][0] > said[0,][0] + 0.7 * head.nbytes
    assert said[0,][0] < head.nbytes
    assert said[0, 1][1] > 1.4 * said[0,][1]
