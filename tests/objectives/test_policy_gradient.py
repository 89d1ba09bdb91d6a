"""The loss of a policy beside its formulas in float64, and however it is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.heads import ActorCritic, ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.policy_gradient import PolicyLossConfig, make_policy_gradient
from genai_jax.objectives.token_log_probs import score_rows
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.rl.algorithms import Algorithm
from genai_jax.rl.targets import AdvantageConfig
from genai_jax.training.step import make_gradients
from tests.rl.enumerated import Pair, Tabular, TabularCritic, gradient_of

ROWS, T, V = 6, 3, 4
NODES = 1 + V + V * V


def rollouts(seed=0, rows=ROWS, length=T, vocab=V):
    """Answers of different lengths, one of them excluded, by another policy than the one that
    trains, so that ratios spread over both bounds; what does not count is no number."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, (rows, length + 1)).astype(np.int32)
    counted = np.arange(length) < rng.integers(1, length + 1, (rows, 1))
    counted[-1] = False

    def numbers(scale):
        return np.where(counted, scale * rng.normal(size=counted.shape), np.nan).astype(np.float32)

    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "loss_mask": counted.astype(np.float32),
        "old_log_probs": numbers(0.8) - np.float32(np.log(vocab)),
        "ref_log_probs": numbers(0.5) - np.float32(np.log(vocab)),
        "advantages": numbers(1.0),
        "returns": numbers(1.0),
        "old_values": numbers(0.5),
        "weight": rng.uniform(0.5, 1.5, rows).astype(np.float32),
    }


BATCH = rollouts()
TABLE = np.random.default_rng(1).normal(size=(NODES, V)).astype(np.float32)
VALUES = np.random.default_rng(2).normal(size=NODES).astype(np.float32)
TEMPERATURE = 0.7


def places(tokens):
    digits, found = np.zeros(len(tokens), int), []
    for t in range(tokens.shape[1]):
        digits = digits * V + tokens[:, t] if t else digits
        found.append((V**t - 1) // (V - 1) + digits)
    return np.stack(found, 1)


def definition(config, batch=BATCH):
    """All terms in float64, and the slope of the loss by each log-probability, token by token.

    Only for an entropy coefficient of 0 and k2: their slopes are written out.
    """
    log_p = TABLE.astype(np.float64) / TEMPERATURE
    log_p -= np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    counted = batch["loss_mask"] > 0
    node = places(batch["tokens"])
    sums = dict.fromkeys(("loss", "policy", "kl", "kl_k3", "old_kl", "clip_fraction", "value"), 0.0)
    sums |= {"entropy": 0.0, "value_clip_fraction": 0.0, "first_log_ratio": 0.0}
    tokens = answers = share_total = 0.0
    slope = np.zeros(counted.shape)
    for b in range(len(counted)):
        n, w = counted[b].sum(), float(batch["weight"][b])
        if not n:
            continue
        answers += w
        own = log_p[node[b], batch["targets"][b]]
        log_ratio = np.where(counted[b], own - batch["old_log_probs"][b], 0)
        for t in np.flatnonzero(counted[b]):
            tokens += w
            a = float(batch["advantages"][b, t])
            x = log_ratio.sum() / n if config.ratio == "sequence" else log_ratio[t]
            rho = np.exp(x)
            bounded = min(max(rho, 1 - config.clip_low), 1 + config.clip_high)
            gain, stopped = min(rho * a, bounded * a), bounded * a < rho * a
            if config.dual_clip and a < 0 and gain < config.dual_clip * a:
                gain, stopped = config.dual_clip * a, True
            if config.ratio == "none":
                gain, stopped = a * own[t], False
            d = own[t] - float(batch["ref_log_probs"][b, t])
            share = {
                "token_mean": w,
                "sequence_mean": w / n,
                "sequence_sum": w,
                "constant": w / max(config.constant_length, 1),
            }[config.aggregation]
            beta = config.kl_coefficient if config.kl_in_loss == "k2" else 0.0
            sums["loss"] += share * (-gain + beta * d * d / 2)
            sums["policy"] -= share * gain
            per_token = 0.0 if stopped else a * (1 if config.ratio == "none" else rho)
            if config.ratio == "sequence":
                slope[b, counted[b]] -= share * per_token / n
            else:
                slope[b, t] -= share * per_token
            slope[b, t] += share * beta * d
            sums["kl"] += w * d
            sums["kl_k3"] += w * (np.exp(-d) - 1 + d)
            sums["old_kl"] += w * (np.exp(log_ratio[t]) - 1 - log_ratio[t])
            sums["first_log_ratio"] += w * abs(log_ratio[t])
            sums["clip_fraction"] += w * stopped
            p = log_p[node[b, t]]
            sums["entropy"] -= w * np.sum(np.exp(p) * p)
            v, old, r = (
                float(x)
                for x in (VALUES[node[b, t]], batch["old_values"][b, t], batch["returns"][b, t])
            )
            near = min(max(v, old - config.value_clip), old + config.value_clip)
            errors = (v - r) ** 2, (near - r) ** 2
            sums["value"] += w * max(errors) / 2
            sums["value_clip_fraction"] += w * (errors[1] > errors[0])
    share_total = tokens if config.aggregation == "token_mean" else answers
    totals = {n: answers if n in ("kl", "kl_k3") else tokens for n in sums}
    totals |= {"loss": share_total, "policy": share_total}
    gradient = np.zeros(TABLE.shape)
    for b, t in zip(*np.nonzero(counted), strict=True):
        one = np.arange(V) == batch["targets"][b, t]
        p = np.exp(log_p[node[b, t]])
        gradient[node[b, t]] += slope[b, t] * (one - p) / TEMPERATURE / share_total
    return {n: sums[n] / totals[n] for n in sums}, gradient


def terms_of(config, batch, context=None):
    objective = jax.jit(make_policy_gradient(config))
    return objective(Tabular(jnp.asarray(TABLE)), batch, context)


K2 = {"kl_in_loss": "k2", "kl_coefficient": 0.3}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dual_clip": 1.5, "clip_high": 0.28, **K2},
        {"ratio": "sequence", "aggregation": "sequence_mean", **K2},
        {"ratio": "none", "aggregation": "sequence_sum", **K2},
        {"aggregation": "constant", "constant_length": 5},
    ],
    ids=["PPO", "dual clip", "GSPO", "REINFORCE", "constant"],
)
def test_terms_and_gradient_are_the_definitions(options):
    config = PolicyLossConfig(temperature=TEMPERATURE, **options)
    wanted, slope = definition(config)
    model = Pair(Tabular(jnp.asarray(TABLE)), TabularCritic(jnp.asarray(VALUES), V))
    algorithm = Algorithm(config, AdvantageConfig())
    gradient, terms = jax.jit(lambda m: gradient_of(algorithm, m, BATCH))(model)
    found = {name: float(term.sum / term.weight) for name, term in terms.items()}
    assert found == pytest.approx(wanted, abs=2e-5)
    np.testing.assert_allclose(gradient.policy.table, slope, atol=3e-6)
    if config.ratio != "none":
        assert 0 < found["clip_fraction"] < 1
    assert 0 < found["value_clip_fraction"] < 1


def test_entropy_is_rewarded():
    """The gradient of H by the logits is -p (log p + H), at the mean over tokens."""
    config = PolicyLossConfig(entropy_coefficient=0.2)
    batch = BATCH | {"advantages": np.zeros_like(BATCH["advantages"]), "weight": np.ones(ROWS)}
    algorithm = Algorithm(config, AdvantageConfig())
    gradient, _ = jax.jit(lambda m: gradient_of(algorithm, m, batch))(Tabular(jnp.asarray(TABLE)))
    log_p = TABLE - np.logaddexp.reduce(TABLE, axis=-1, keepdims=True)
    by_node = -np.exp(log_p) * (log_p - np.sum(np.exp(log_p) * log_p, -1, keepdims=True))
    counted = BATCH["loss_mask"] > 0
    visits = np.bincount(places(BATCH["tokens"])[counted], minlength=NODES)
    wanted = -0.2 * visits[:, None] * by_node / counted.sum()
    np.testing.assert_allclose(gradient.table, wanted, atol=1e-6)


def test_the_first_ratio_is_that_of_the_first_update_alone():
    batch = BATCH | {"update": np.array([0, 1, 0, 2, 1, 0], np.int32)}
    term = terms_of(PolicyLossConfig(temperature=TEMPERATURE), batch)["first_log_ratio"]
    first = {name: x[[0, 2]] for name, x in BATCH.items()}
    wanted, _ = definition(PolicyLossConfig(), first)
    assert float(term.sum / term.weight) == pytest.approx(wanted["first_log_ratio"], abs=1e-6)


def test_rows_of_other_weights_are_counted():
    steps = np.array([3, 4, 4, 3, 4, 4], np.int32)
    batch = BATCH | {"weights_step": steps, "step": np.full(ROWS, 4, np.int32)}
    term = terms_of(PolicyLossConfig(), batch)["stale"]
    assert (float(term.sum), float(term.weight), term.coefficient) == (2, 6, 0)


def test_a_ratio_beyond_all_bounds_stays_a_number():
    batch = BATCH | {"old_log_probs": np.full_like(BATCH["old_log_probs"], -300.0)}
    config = PolicyLossConfig(ratio="sequence", kl_in_loss="k3_weighted", kl_coefficient=1.0)
    algorithm = Algorithm(config, AdvantageConfig())
    model = Tabular(jnp.asarray(TABLE))
    gradient, terms = jax.jit(lambda m: gradient_of(algorithm, m, batch))(model)
    assert np.isfinite(gradient.table).all()
    assert all(np.isfinite(term.sum) for term in terms.values())


# However it is computed.

CONFIG = TransformerConfig(
    vocab_size=7, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=8, max_length=8, init_std=0.3
)
FULL = PolicyLossConfig(
    aggregation="sequence_mean",
    dual_clip=2.0,
    kl_in_loss="k3_weighted",
    entropy_coefficient=0.1,
)
LARGE = {k: np.nan_to_num(x) for k, x in rollouts(3, rows=32, length=6, vocab=7).items()}


def computed(config, batch, devices=1, microbatches=1):
    critic = ScalarModel(LanguageModel(CONFIG, jax.random.key(1)), jax.random.key(2))
    model = ActorCritic(LanguageModel(CONFIG, jax.random.key(0)), critic)
    mesh = make_mesh(devices=jax.devices()[:devices])
    gradients = make_gradients(make_policy_gradient(config), mesh, microbatches)
    batch = jax.device_put(batch, batch_sharding(mesh))
    found, metrics = jax.jit(gradients)(model, batch, {"beta": jnp.float32(0.3)})
    return jax.tree.map(np.asarray, (jax.tree.leaves(found), metrics))


@pytest.fixture(scope="module", params=["sequence_mean", "token_mean"])
def case(request):
    config = dataclasses.replace(FULL, aggregation=request.param)
    if request.param == "token_mean":
        config = dataclasses.replace(config, ratio="sequence")
    return config, computed(config, LARGE)


def same(found, wanted):
    (gradients, metrics), (other_gradients, other_metrics) = found, wanted
    assert any(np.abs(g).max() > 1e-3 for g in gradients)
    for g, other in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(g, other, atol=2e-6)
    values, others = (
        {name: float(a / b) for name, (a, b) in m.items()} for m in (metrics, other_metrics)
    )
    assert values == pytest.approx(others, abs=1e-5)


def test_devices_microbatches_and_padding_change_nothing(case):
    """Nor do rows that have a weight and no token that counts."""
    config, wanted = case
    padded = {
        name: np.pad(x, ((0, 16), *[(0, 2)] * (x.ndim - 1)), constant_values=0)
        for name, x in LARGE.items()
    }
    padded["advantages"][32:] = np.nan
    padded["weight"][32:] = 1
    padded["tokens"][:, 6:] = 5
    same(computed(config, padded, devices=8, microbatches=2), wanted)


def test_what_is_missing_is_named():
    model = Tabular(jnp.asarray(TABLE))
    objective = make_policy_gradient(PolicyLossConfig(kl_in_loss="k3"))
    without = {name: x for name, x in BATCH.items() if name != "ref_log_probs"}
    with pytest.raises(ValueError, match="missing: ref_log_probs"):
        objective(model, without, {"beta": 0.1})
    with pytest.raises(ValueError, match="`kl_in_loss` k3 needs its coefficient"):
        objective(model, BATCH, {"reference": None})
    without = {name: x for name, x in BATCH.items() if name != "returns"}
    with pytest.raises(ValueError, match="missing: returns"):
        objective(Pair(model, TabularCritic(jnp.asarray(VALUES), V)), without, {"beta": 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.5}, "`clip_low` must be in"),
        ({"clip_high": -0.1}, "`clip_high` must be at least 0"),
        ({"dual_clip": 0.5}, "`dual_clip` must be above 1"),
        ({"aggregation": "constant"}, "`constant_length`"),
        ({"constant_length": 5}, "`constant_length`"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyLossConfig(**options)


def test_the_loss_of_on_policy_groups_is_the_divergence_alone():
    """With ratio 1 and advantages of mean 0 a mean over sequences has the value beta KL."""
    config = dataclasses.replace(FULL, entropy_coefficient=0.0, kl_in_loss="k3")
    advantages = np.where(BATCH["loss_mask"] > 0, [[1.0], [-1], [2], [-2], [0], [0]], 0)
    assert float(terms_of(config, BATCH, {"beta": 0.3})["old_kl"].sum) > 0.1
    score = jax.jit(lambda *rows: score_rows(Tabular(jnp.asarray(TABLE)), *rows).log_probs)
    own = score(BATCH["tokens"], BATCH["targets"])
    batch = BATCH | {
        "old_log_probs": own,
        "advantages": advantages.astype(np.float32),
        "weight": np.ones(ROWS, np.float32),
    }
    terms = terms_of(config, batch, {"beta": 0.3})
    assert float(terms["policy"].sum) == pytest.approx(0, abs=1e-6)
    counted = BATCH["loss_mask"] > 0
    d = np.where(counted, own - BATCH["ref_log_probs"], 0).astype(np.float64)
    of_answers = (np.exp(-d) - 1 + d).sum(-1)[:5] / counted.sum(-1)[:5]
    assert float(terms["loss"].sum) == pytest.approx(0.3 * of_answers.sum(), rel=1e-5)
    assert float(terms["first_log_ratio"].sum) == 0
