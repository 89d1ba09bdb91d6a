"""Preference losses beside their definitions in float64, and where the reference comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import add_lora, is_adapter, without_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.preference import PreferenceConfig, make_preference
from genai_jax.objectives.reference import make_reference_scorer
from genai_jax.objectives.token_log_probs import sum_log_probs
from genai_jax.parallel.mesh import make_mesh
from genai_jax.paths import map_named
from tests.objectives.tabular import Policy, answer_rows, policy_of

B, T, V = 8, 6, 11
CONFIG = TransformerConfig(
    vocab_size=V, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=16, max_length=T, init_std=0.4
)
EPSILON, GAMMA, ODDS, BETA = 0.2, 0.6, 0.3, 0.7


def pairs():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, 2, T + 1)).astype(np.int32)
    starts, lengths = rng.integers(0, 3, (B, 2, 1)), rng.integers(1, 4, (B, 2, 1))
    places = np.arange(T)
    mask = (places >= starts) & (places < starts + lengths)
    exist = np.ones((B, 2), np.float32)
    exist[3, 1] = exist[5, 0] = 0
    return {
        "tokens": jnp.asarray(ids[..., :-1]),
        "targets": jnp.asarray(ids[..., 1:]),
        "loss_mask": jnp.asarray(mask, jnp.float32),
        "answer_mask": jnp.asarray(exist),
        "weight": jnp.asarray(rng.integers(0, 3, B), jnp.float32),
    }


@pytest.fixture(scope="module")
def scored():
    """Two models, a batch, and what both say of its answers."""
    policy, reference = (LanguageModel(CONFIG, jax.random.key(i)) for i in range(2))
    batch = pairs()
    sums = [np.asarray(jax.jit(sum_log_probs)(m, batch), np.float64) for m in (policy, reference)]
    return policy, reference, batch, *sums


def definition(loss, own, other, lengths, *, normalised=False):
    """The formulas of the module's docstring, of all rows."""

    def log_sigmoid(x):
        return -np.log1p(np.exp(-x))

    ratios = own - other
    h = ratios[:, 0] - ratios[:, 1]
    means = own / lengths
    if loss == "dpo":
        return -log_sigmoid(BETA * h)
    if loss == "ipo":
        if normalised:
            ratios = ratios / lengths
        return (ratios[:, 0] - ratios[:, 1] - 1 / (2 * BETA)) ** 2
    if loss == "cdpo":
        return -(1 - EPSILON) * log_sigmoid(BETA * h) - EPSILON * log_sigmoid(-BETA * h)
    if loss == "robust":
        mixed = -(1 - EPSILON) * log_sigmoid(BETA * h) + EPSILON * log_sigmoid(-BETA * h)
        return mixed / (1 - 2 * EPSILON)
    if loss == "simpo":
        return -log_sigmoid(BETA * means[:, 0] - BETA * means[:, 1] - GAMMA)
    odds = means - np.log(1 - np.exp(means))
    return -means[:, 0] - ODDS * log_sigmoid(odds[:, 0] - odds[:, 1])


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("dpo", {}),
        ("ipo", {}),
        ("ipo", {"length_normalised": True}),
        ("cdpo", {"label_smoothing": EPSILON}),
        ("robust", {"label_smoothing": EPSILON}),
        ("simpo", {"gamma": GAMMA}),
        ("orpo", {"odds_weight": ODDS}),
    ],
)
def test_losses_are_their_definitions(scored, loss, options):
    policy, _, batch, own, other = scored
    config = PreferenceConfig(loss, beta=BETA, **options)
    cached = batch | {"ref_log_probs": jnp.asarray(other, jnp.float32)}
    terms = jax.jit(make_preference(config))(policy, cached)
    counted = np.asarray(batch["weight"] * batch["answer_mask"].prod(1))
    lengths = np.asarray(batch["loss_mask"].sum(-1))
    losses = definition(loss, own, other, lengths, normalised=config.length_normalised)
    np.testing.assert_allclose(terms["loss"].sum, counted @ losses, rtol=2e-5)
    assert {float(term.weight) for term in terms.values()} == {counted.sum()}
    np.testing.assert_allclose(terms["chosen_log_prob"].sum, counted @ own[:, 0], rtol=1e-5)
    np.testing.assert_allclose(terms["rejected_log_prob"].sum, counted @ own[:, 1], rtol=1e-5)
    if config.needs_reference:
        ratios = own - other
        np.testing.assert_allclose(
            terms["chosen_reward"].sum, BETA * counted @ ratios[:, 0], rtol=1e-4
        )
        np.testing.assert_allclose(
            terms["kl_from_reference"].sum, -counted @ ratios.mean(1), rtol=1e-4
        )
        if not config.length_normalised:
            right = counted @ (ratios[:, 0] > ratios[:, 1])
            assert float(terms["accuracy"].sum) == pytest.approx(right)


def test_cached_live_and_adapters_off_are_the_same(scored):
    """Of a policy that is the reference with adapters; none sends a gradient to the reference."""
    _, reference, batch, _, _ = scored
    adapted = add_lora(reference, LoraConfig(rank=2), jax.random.key(5))
    policy = map_named(
        lambda name, x: (
            x + 0.2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if is_adapter(name) else x
        ),
        adapted,
    )
    cached = batch | {"ref_log_probs": make_reference_scorer(reference, make_mesh())(batch)}
    found = []
    for source, rows in (("cached", cached), ("live", batch), ("adapter_off", batch)):
        objective = make_preference(PreferenceConfig(reference=source), base_of=without_lora)

        @jax.jit
        @jax.value_and_grad
        def loss(model, objective=objective, rows=rows):
            return objective(model, rows, {"reference": reference})["loss"].sum

        found.append(loss(policy))
    counted = float((batch["weight"] * batch["answer_mask"].prod(1)).sum())
    assert abs(float(found[0][0]) - counted * np.log(2)) > 1e-3  # the adapters do something
    for value, gradient in found[1:]:
        np.testing.assert_allclose(value, found[0][0], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(found[0][1]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_reference_that_is_the_model_without_adapters_gets_no_gradient():
    """h is always 0 where nothing is taken off, and its gradient is that of the policy's side."""
    policy = policy_of(np.array([[0.7, 0.3]]))
    batch = jax.tree.map(jnp.asarray, answer_rows([0], [[0, 1]], [1.0]))
    objective = make_preference(
        PreferenceConfig(beta=2.0, reference="adapter_off"), base_of=lambda model: model
    )

    def loss(model):
        return objective(model, batch)["loss"].sum

    value, gradient = jax.jit(jax.value_and_grad(loss))(policy)
    assert float(value) == pytest.approx(np.log(2))
    # -beta sigma(0) d(log pi_0 - log pi_1)
    np.testing.assert_allclose(gradient.table, [[-1.0, 1.0]], atol=1e-6)


def test_odds_of_a_sure_policy_are_finite_and_have_a_gradient():
    batch = jax.tree.map(jnp.asarray, answer_rows([0], [[0, 1]], [1.0]))
    objective = make_preference(PreferenceConfig("orpo"))
    gradient_of = jax.jit(jax.value_and_grad(lambda m: objective(m, batch)["loss"].sum))
    for gap in (0.0, 1e-3, 5.0, 90.0, -90.0):
        value, gradient = gradient_of(Policy(jnp.array([[gap, 0.0]])))
        assert np.isfinite(value) and np.all(np.isfinite(gradient.table))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "`beta` must be above 0; got 0"),
        ({"loss": "cdpo", "label_smoothing": 0.5}, r"must be in \[0, 0.5\); got 0.5"),
        ({"label_smoothing": 0.1}, "belongs to cdpo and robust; got 0.1 with loss 'dpo'"),
        ({"gamma": 0.1}, "`gamma` belongs to simpo"),
        ({"loss": "simpo", "gamma": -0.1}, "`gamma` must not be negative"),
        ({"odds_weight": 0.2}, "`odds_weight` belongs to orpo"),
        ({"length_normalised": True}, "`length_normalised` belongs to ipo"),
        ({"reference": "none"}, "'dpo' needs a reference"),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**options)


def test_what_is_missing_is_said(scored):
    policy, _, batch, _, _ = scored

    def refused(objective, rows, context, message):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(objective, policy, rows, context)

    refused(make_preference(), batch, None, r"reads `ref_log_probs` \[B, K\] from the batch")
    live = make_preference(PreferenceConfig(reference="live"))
    refused(live, batch, {}, r"reads the frozen model context\['reference'\]")
    other = policy_of(np.ones((V + 1, V + 1)))
    refused(live, batch, {"reference": other}, "vocabulary; got 12 ids beside 11")
    short = {name: x[:, :1] for name, x in batch.items() if x.ndim > 1}
    refused(live, short, None, r"must be a pair.*got 1 answers a row")
    with pytest.raises(ValueError, match="'adapter_off' needs `base_of`"):
        make_preference(PreferenceConfig(reference="adapter_off"))
