"""Over-optimisation: estimates against enumeration, fits against known coefficients."""

import itertools

import numpy as np
import pytest

from genai_jax.rl.best_of_n import best_of_n_distribution, divergence, kl_bound
from genai_jax.rl.overoptimisation import (
    Curve,
    best_of_n_estimates,
    best_of_n_weights,
    fit_gains,
    fit_together,
)
from genai_jax.rl.overoptimisation_plot import draw_curves


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_estimates_are_means_over_all_choices(n):
    rng = np.random.default_rng(n)
    proxy, gold = rng.normal(size=(2, 5, 6))
    found = best_of_n_estimates(proxy, gold, n)
    for row in range(5):
        best = [
            gold[row, max(chosen, key=lambda i: proxy[row, i])]
            for chosen in itertools.combinations(range(6), n)
        ]
        assert found[row] == pytest.approx(np.mean(best), abs=1e-12)


def test_equal_proxies_are_chosen_alike():
    """As if each had been raised by an infinitesimal amount, in all orders."""
    proxy, gold = np.array([[0.0, 1.0, 1.0, 1.0, 2.0]]), np.array([[3.0, -1.0, 4.0, 0.5, 7.0]])
    orders = []
    for order in itertools.permutations(range(3)):
        raised = proxy.copy()
        raised[0, 1:4] += 1e-3 * np.array(order)
        orders.append(best_of_n_estimates(raised, gold, 2))
    assert best_of_n_estimates(proxy, gold, 2) == pytest.approx(np.mean(orders, axis=0), abs=1e-12)


def test_weights_are_those_of_binomials_and_stay_finite():
    assert best_of_n_weights(5, 3) == pytest.approx(np.array([0, 0, 1, 3, 6]) / 10)
    for n in (1, 2, 500, 1000):
        weights = best_of_n_weights(1000, n)
        assert np.all(weights >= 0) and weights.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="N = 4"):
        best_of_n_weights(4, 5)


def test_estimates_agree_with_the_exact_distribution():
    """Of a policy over eight answers, drawn often."""
    rng = np.random.default_rng(0)
    policy = rng.dirichlet(np.ones(8))
    proxy, gold = rng.normal(size=(2, 8))
    drawn = rng.choice(8, size=(3000, 8), p=policy)
    for n in (2, 4):
        exact = best_of_n_distribution(policy, proxy, n) @ gold
        found = best_of_n_estimates(proxy[drawn], gold[drawn], n)
        assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))


@pytest.mark.parametrize("form", ["best of n", "reinforcement learning"])
def test_fits_recover_known_coefficients(form):
    kl = np.geomspace(0.01, 25, 30)
    d = np.sqrt(kl)
    gains = d * (1.3 - 0.4 * (d if form == "best of n" else np.log(d)))
    fitted = fit_gains(form, kl, gains)
    assert (fitted.alpha, fitted.beta) == pytest.approx((1.3, 0.4), abs=1e-10)
    assert fitted.residual < 1e-10
    assert fitted(d) == pytest.approx(gains, abs=1e-10)
    # The peak is where the curve is highest.
    fine = np.linspace(0.001, 12, 20_001)
    assert fitted.peak == pytest.approx(fine[np.argmax(fitted(fine))], abs=1e-3)


def test_errors_are_those_of_repeated_experiments():
    rng = np.random.default_rng(1)
    kl = np.linspace(0.2, 9, 12)
    d = np.sqrt(kl)
    fits = [
        fit_gains("best of n", kl, d * (1.0 - 0.2 * d) + rng.normal(scale=0.1, size=12))
        for _ in range(2000)
    ]
    for name in ("alpha", "beta"):
        values = np.array([getattr(fitted, name) for fitted in fits])
        errors = np.array([getattr(fitted, f"{name}_error") for fitted in fits])
        assert values.std() == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.05)


def test_points_at_the_start_do_not_count_and_too_few_are_refused():
    kl, gains = np.array([-0.1, 0.0, 1.0, 4.0, 9.0]), np.array([9.0, 9.0, 1.0, 1.5, 1.4])
    assert fit_gains("best of n", kl, gains) == fit_gains("best of n", kl[2:], gains[2:])
    with pytest.raises(ValueError, match="three points"):
        fit_gains("best of n", kl[:4], gains[:4])
    with pytest.raises(ValueError, match="different distances"):
        fit_gains("best of n", np.ones(4), np.ones(4))


def test_a_curve_that_never_falls_has_no_peak():
    kl = np.array([1.0, 2.0, 3.0, 4.0])
    assert fit_gains("best of n", kl, kl).peak == np.inf


def test_a_picture_is_drawn_with_and_without_a_fit(tmp_path):
    kl = np.linspace(0, 9, 8)
    gold, proxy = np.sqrt(kl) - 0.2 * kl, np.sqrt(kl)
    ways = [Curve("best of n", "best of n", kl, gold, proxy)]
    learnt = [Curve(f"beta {b}", "reinforcement learning", kl - 0.1, gold, proxy) for b in (0, 1)]
    picture = tmp_path / "plots" / "curves.png"
    draw_curves([(ways, fit_together(ways)), (learnt, None)], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def constructed():
    """Many answers whose proxy is their gold reward, but for rare ones that it overrates."""
    gold = np.linspace(-1, 1, 200)
    policy = np.exp(-0.5 * np.square(gold / 0.5))
    overrated = np.full(5, 1e-3)
    policy = np.concatenate([policy / policy.sum() * (1 - overrated.sum()), overrated])
    proxy = np.concatenate([gold, np.linspace(1.5, 2.0, 5)])
    return policy, proxy, np.concatenate([gold, np.full(5, -1.0)])


def test_a_wrong_proxy_is_over_optimised():
    """The proxy rises all the way; the gold reward rises, then falls below where it began."""
    policy, proxy, gold = constructed()
    start = policy @ gold
    chosen = {n: best_of_n_distribution(policy, proxy, n) for n in (1, 2, 4, 8, 16, 64, 512, 4096)}
    tilted = []
    for beta in np.geomspace(20, 0.05, 25):
        weights = policy * np.exp((proxy - proxy.max()) / beta)
        tilted.append(weights / weights.sum())
    for ways in (list(chosen.values()), tilted):
        golds = np.array([each @ gold for each in ways]) - start
        assert np.all(np.diff([each @ proxy for each in ways]) > 0)
        peak = int(np.argmax(golds))
        assert 0 < peak < len(golds) - 1 and golds[peak] > 0.2 and golds[-1] < 0
        assert np.all(np.diff(golds[: peak + 1]) > 0) and np.all(np.diff(golds[peak:]) < 0)
    for n, each in chosen.items():
        assert divergence(each, policy) <= kl_bound(n) + 1e-12
    # The fitted curve knows that, too: it has its peak inside.
    kl = np.array([divergence(each, policy) for each in tilted])
    gains = np.array([each @ gold for each in tilted]) - start
    curve = Curve("tilted", "reinforcement learning", kl, gains, gains)
    fitted = fit_together([curve])
    assert fitted == fit_gains(curve.form, kl, gains)
    assert fitted.beta > 3 * fitted.beta_error and 0 < fitted.peak < np.sqrt(kl.max())
