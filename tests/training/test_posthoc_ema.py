"""Averages made after the training are those that would have been tracked during it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.ema import PowerEMA, gamma_of, power_averages, update_average
from genai_jax.training.posthoc_ema import Profile, fit_profile, inner_products, reconstruct

STEPS, SIZE = 320, 50
TRACES = power_averages((0.05, 0.1))
DIRECT = {str(x): PowerEMA(x) for x in (0.04, 0.07, 0.15, 0.2)}


def density(profile, tau):
    gamma = gamma_of(profile.sigma_rel)
    return (gamma + 1) * tau**gamma / profile.step ** (gamma + 1)


def test_inner_products_are_the_integrals():
    profiles = [Profile(s, t) for s, t in ((0.05, 100), (0.1, 40), (0.25, 100), (0.02, 70))]
    u, weights = np.polynomial.legendre.leggauss(300)
    found = inner_products(profiles, profiles)
    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            end = min(a.step, b.step)
            tau = (u + 1) / 2 * end
            expected = weights @ (density(a, tau) * density(b, tau)) * end / 2
            assert found[i, j] == pytest.approx(expected, rel=1e-9)
    huge = inner_products([Profile(0.003, 10**7)], [Profile(0.003, 10**7)])
    assert np.isfinite(huge).all()


def test_weights_are_exact_where_they_can_be_and_nearest_elsewhere():
    known = [Profile(s, t) for t in range(40, 401, 40) for s in (0.05, 0.1)]
    weights, residual = fit_profile(known, Profile(0.1, 400))
    np.testing.assert_allclose(weights, np.eye(20)[19], atol=1e-12)
    assert residual < 1e-7
    weights, residual = fit_profile(known, Profile(0.15, 400))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # The residual is that of the densities, on a grid.
    tau = (np.arange(200_000) + 0.5) / 500
    wanted = density(Profile(0.15, 400), tau)
    made = sum(w * density(p, tau) * (tau <= p.step) for w, p in zip(weights, known, strict=True))
    distance = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert residual == pytest.approx(distance, rel=1e-3)
    # No other weights that sum to one come nearer.
    gram = inner_products(known, known)
    right = inner_products(known, [Profile(0.15, 400)])[:, 0]
    gradient = gram @ weights - right
    np.testing.assert_allclose(gradient, gradient.mean(), atol=1e-9)


@pytest.fixture(scope="module")
def trajectory():
    """Every average after every step of parameters that drift, jitter, and are far from zero."""
    rng = np.random.default_rng(0)
    jitter = rng.standard_normal((STEPS, SIZE))
    drift = np.log(np.arange(1, STEPS + 1))[:, None] * rng.standard_normal(SIZE)
    path = jnp.asarray(30 + drift + 0.05 * jitter.cumsum(0) + 0.5 * jitter, jnp.float32)
    rules = TRACES | DIRECT

    def step(averages, now):
        number, params = now
        moved = {
            name: update_average(averages[name], params, rule.share(number))
            for name, rule in rules.items()
        }
        return moved, moved

    start = {name: jnp.zeros(SIZE) for name in rules}
    _, every = jax.jit(lambda: jax.lax.scan(step, start, (jnp.arange(STEPS), path)))()
    return {name: np.asarray(x) for name, x in every.items()} | {"path": np.asarray(path)}


def snapshots(folder, trajectory, every):
    with Checkpoints(folder, keep=None) as store:
        for step in range(every, STEPS + 1, every):
            store.save(step, {n: {"w": jnp.asarray(trajectory[n][step - 1])} for n in TRACES})
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory, trajectory):
    return snapshots(tmp_path_factory.mktemp("dense") / "ema", trajectory, 20)


@pytest.fixture(scope="module")
def like():
    return {
        "w": jax.ShapeDtypeStruct(
            (SIZE,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0])
        )
    }


def error(made, trajectory, name, step=STEPS):
    """Distance from the average that was tracked, in units of what averaging does at all."""
    direct, newest = trajectory[name][step - 1], trajectory["path"][step - 1]
    return np.linalg.norm(made.model["w"] - direct) / np.linalg.norm(newest - direct)


def test_it_equals_the_average_that_was_tracked_better_with_more_snapshots(
    tmp_path, trajectory, dense, like
):
    sparse = snapshots(tmp_path / "sparse", trajectory, 80)
    for name, most in (("0.04", 0.01), ("0.07", 0.003), ("0.15", 0.01), ("0.2", 0.02)):
        made = reconstruct(dense, like, float(name))
        assert error(made, trajectory, name) < most
        assert made.step == STEPS
        coarse = reconstruct(sparse, like, float(name), max_residual=1.0)
        assert error(made, trajectory, name) < 0.5 * error(coarse, trajectory, name)
        assert made.residual < 0.5 * coarse.residual


def test_a_tracked_length_at_a_snapshot_is_that_snapshot(dense, trajectory, like):
    for name in TRACES:
        for step in (STEPS, 200):
            made = reconstruct(dense, like, float(name), step=step)
            np.testing.assert_array_equal(made.model["w"], trajectory[name][step - 1])
            assert made.step == step


def test_what_came_after_a_step_does_not_change_it(tmp_path, dense, trajectory, like):
    made = reconstruct(dense, like, 0.07, step=160)
    assert error(made, trajectory, "0.07", 160) < 0.01
    before = shutil.copytree(dense, tmp_path / "before")
    for step in range(180, STEPS + 1, 20):
        shutil.rmtree(before / str(step))
    np.testing.assert_array_equal(reconstruct(before, like, 0.07).model["w"], made.model["w"])


def test_a_damaged_snapshot_is_left_out_and_told(tmp_path, dense, trajectory, like, capsys):
    folder = shutil.copytree(dense, tmp_path / "ema")
    (folder / "300" / "manifest" / "manifest.json").write_text("")
    for path in (folder / "280" / "state").rglob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(bytes(content))
    made = reconstruct(folder, like, 0.07)
    assert error(made, trajectory, "0.07") < 0.02
    told = capsys.readouterr().err
    assert "snapshot 300 is damaged and left out" in told
    assert "snapshot 280 is damaged and left out" in told


def test_what_cannot_be_made_is_refused_with_what_can(tmp_path, dense, like):
    with pytest.raises(ValueError, match=r"there are none in .*none\. Train with --ema-traces"):
        reconstruct(tmp_path / "none", like, 0.1)
    with pytest.raises(ValueError, match=r"`step` must be that of a snapshot; got 150.* 140, 160"):
        reconstruct(dense, like, 0.1, step=150)
    with pytest.raises(ValueError, match=r"`sigma_rel` must be above 0"):
        reconstruct(dense, like, 0.3)
    with pytest.raises(ValueError, match=r"come within .* of `sigma_rel` 0\.005") as refused:
        reconstruct(dense, like, 0.005)
    nearest = float(str(refused.value).split("nearest that they can is ")[1].rstrip("."))
    assert 0.005 < nearest < 0.05
    assert reconstruct(dense, like, 1.05 * nearest).residual <= 0.1
    with pytest.raises(ValueError, match="at most 0% is accepted"):
        reconstruct(dense, like, 0.07, max_residual=1e-6)


def test_snapshots_of_another_model_are_refused(dense, like):
    other = {"w": jax.ShapeDtypeStruct((7,), jnp.float32, sharding=like["w"].sharding)}
    with pytest.raises(ValueError, match=r"misshapen: 0\.1/w is float32\[50\], needed .*\[7\]"):
        reconstruct(dense, other, 0.1)
