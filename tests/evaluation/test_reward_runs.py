"""The scale of rewards, and how well a reward model knows what is preferred: known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.evaluation.reward_runs import (
    Scale,
    calibration_of,
    draw_scalar_model,
    load_scale,
    make_reward_reader,
    pair_gaps,
    scale_of,
)
from genai_jax.models.heads import rescaled
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import replicated
from genai_jax.paths import named_leaves

SHAPE = TransformerConfig(
    vocab_size=30, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32, max_length=12, init_std=0.3
)


def test_a_scale_gives_the_mean_0_and_the_deviation_1_and_is_kept(tmp_path):
    rewards = np.random.default_rng(0).normal(-7, 3, 1000)
    scale = scale_of(rewards)
    scaled = scale.gain * rewards + scale.bias
    assert scaled.mean() == pytest.approx(0, abs=1e-9) and scaled.std() == pytest.approx(1)
    scale.save(tmp_path)
    assert load_scale(tmp_path) == scale
    assert load_scale(tmp_path / "none") == Scale(1.0, 0.0)
    assert scale_of(np.full(5, 2.0)) == Scale(1.0, -2.0)  # no width to divide by


class Rows:
    """Five rows of three answers, of which the last may be missing; zeros past the end."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, 30, (5, 3, 12)).astype(np.int32)
        self.lengths = rng.integers(1, 12, (5, 3)).astype(np.int32)
        self.exists = np.ones((5, 3), np.float32)
        self.exists[1, 2] = self.exists[4, 2] = 0

    def __len__(self):
        return 5

    def __getitem__(self, i):
        if i >= 5:
            return {
                "tokens": np.zeros((3, 12), np.int32),
                "lengths": np.ones(3, np.int32),
                "answer_mask": np.zeros(3, np.float32),
            }
        return {
            "tokens": self.tokens[i],
            "lengths": self.lengths[i],
            "answer_mask": self.exists[i],
        }


def test_rewards_of_rows_are_those_of_each_answer_alone():
    rows, mesh = Rows(), make_mesh(devices=jax.devices()[:2])
    model = draw_scalar_model(SHAPE, LoraConfig(rank=0), 0)
    model = jax.device_put(rescaled(model, 2.0, 1.0), replicated(mesh))
    found = make_reward_reader(mesh, rows, 4)(model)
    assert found.shape == (5, 3)
    np.testing.assert_array_equal(np.isfinite(found), rows.exists > 0)
    flat = jnp.asarray(rows.tokens.reshape(15, 12)), jnp.asarray(rows.lengths.reshape(15))
    alone = np.asarray(model.at_end(*flat)).reshape(5, 3)
    np.testing.assert_allclose(found[rows.exists > 0], alone[rows.exists > 0], rtol=1e-4, atol=1e-5)
    for most, count in ((3, 3), (9, 5)):  # the first ones; no more than there are
        some = make_reward_reader(mesh, rows, 2, most)(model)
        np.testing.assert_allclose(some, found[:count], rtol=1e-4, atol=1e-5)


def test_gaps_are_of_all_pairs_that_there_are():
    rewards = np.array([[3.0, 2.0, 0.5], [1.0, 4.0, np.nan]])
    assert pair_gaps(rewards).tolist() == [1.0, 2.5, 1.5, -3.0]


def test_calibration_of_a_known_table():
    """Forty pairs as sure as 3/4 of which 30 are right, and ten as sure as 1/2, which are ties."""
    gap = np.log(3.0)
    gaps = np.array([gap] * 30 + [-gap] * 10 + [0.0] * 10)
    found = calibration_of(gaps, num_bins=5)
    assert found.accuracy == pytest.approx((30 + 5) / 50)
    assert [n for *_, n in found.bins] == [10] * 5
    assert found.bins[0] == pytest.approx((0.5, 0.5, 10))
    assert all(sure == pytest.approx(0.75) for sure, *_ in found.bins[1:])
    error = sum(abs(right - sure) for sure, right, _ in found.bins) / 5
    assert found.error == pytest.approx(error)
    assert [right for _, right, _ in found.bins[1:]] == [1.0, 1.0, 1.0, 0.0]


def test_who_is_as_sure_as_he_is_right_has_no_error():
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 4, 40_000)
    right = rng.uniform(size=size.size) < 1 / (1 + np.exp(-size))
    gaps = np.where(right, size, -size)
    assert calibration_of(gaps).error < 0.01
    assert calibration_of(3 * gaps).error > 0.05  # too sure by far
    assert calibration_of(3 * gaps).accuracy == calibration_of(gaps).accuracy


def test_a_critic_begins_at_zero_and_a_reward_model_does_not():
    tokens = jnp.arange(12)[None]
    assert not draw_scalar_model(SHAPE, LoraConfig(rank=2), 0, init_std=0.0)(tokens).any()
    one, two = (draw_scalar_model(SHAPE, LoraConfig(rank=2), seed) for seed in (0, 1))
    assert one(tokens).any()
    names = {name for name, _ in named_leaves(one)}
    assert any("lora/a" in name for name in names) and "score/kernel" in names
    for (name, x), (_, y) in zip(named_leaves(one), named_leaves(two), strict=True):
        if name.endswith(("kernel", "table", "lora/a")):
            assert (x != y).any(), name
