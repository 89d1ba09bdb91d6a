import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.rope import RopeConfig, apply_rope, rope_frequencies, rope_tables

H = 16


def test_frequencies_are_a_geometric_series():
    expected = [10_000 ** (-2 * i / H) for i in range(H // 2)]
    np.testing.assert_allclose(rope_frequencies(RopeConfig(), H), expected, rtol=1e-12)


def test_linear_scaling_divides_positions():
    scaled = rope_frequencies(RopeConfig(scaling="linear", factor=4.0), H)
    np.testing.assert_allclose(scaled, rope_frequencies(RopeConfig(), H) / 4, rtol=1e-12)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    """Llama 3.1's numbers: head size 128, theta 500,000, factor 8, 8,192 tokens, bounds 1 and 4."""
    config = RopeConfig(500_000.0, "llama3", 8.0, 8192, 1.0, 4.0)
    plain = rope_frequencies(RopeConfig(500_000.0), 128)
    scaled = rope_frequencies(config, 128)
    wavelength = 2 * math.pi / plain
    np.testing.assert_array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    between = (wavelength >= 2048) & (wavelength <= 8192)
    assert between.sum() == 6
    # The released code's interpolation, one frequency at a time.
    for omega, actual in zip(plain[between], scaled[between], strict=True):
        smooth = (8192 * omega / (2 * math.pi) - 1) / (4 - 1)
        assert actual == pytest.approx((1 - smooth) * omega / 8 + smooth * omega, rel=1e-12)


def test_yarn_keeps_fast_dimensions_and_stretches_slow_ones():
    """Qwen 2.5's numbers: head size 128, theta 1e6, factor 4, 32,768 tokens."""
    config = RopeConfig(1e6, "yarn", 4.0, 32_768)
    plain = rope_frequencies(RopeConfig(1e6), 128)
    scaled = rope_frequencies(config, 128)
    # Dimensions that turn 32 times and once over the original length, rounded outwards.
    turns = [64 * math.log(32_768 / (n * 2 * math.pi)) / math.log(1e6) for n in (32, 1)]
    first, last = math.floor(turns[0]), math.ceil(turns[1])
    assert (first, last) == (23, 40)
    np.testing.assert_allclose(scaled[: first + 1], plain[: first + 1], rtol=1e-12)
    np.testing.assert_allclose(scaled[last:], plain[last:] / 4, rtol=1e-12)
    middle = (first + last) // 2
    share = (middle - first) / (last - first)
    expected = plain[middle] * (1 - share + share / 4)
    assert scaled[middle] == pytest.approx(expected, rel=1e-12)
    assert config.magnitude == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_without_a_stretch_is_the_identity():
    config = RopeConfig(scaling="yarn", factor=1.0)
    np.testing.assert_allclose(rope_frequencies(config, H), rope_frequencies(RopeConfig(), H))
    assert config.magnitude == 1.0


def rotated(x, positions):
    return apply_rope(x, rope_tables(RopeConfig(theta=100.0), H, positions))


def test_rotation_is_multiplication_by_a_complex_number():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, H))
    actual = np.asarray(rotated(x, jnp.arange(5)[None]), np.float64)
    omega = rope_frequencies(RopeConfig(theta=100.0), H)
    pairs = np.asarray(x[..., : H // 2]) + 1j * np.asarray(x[..., H // 2 :])
    turned = pairs * np.exp(1j * np.arange(5)[:, None] * omega)[None, :, None, :]
    np.testing.assert_allclose(actual[..., : H // 2], turned.real, atol=1e-5)
    np.testing.assert_allclose(actual[..., H // 2 :], turned.imag, atol=1e-5)


def test_products_depend_on_distances_alone():
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 6, 1, H))

    def products(shift):
        positions = jnp.arange(6)[None] + shift
        return jnp.einsum("btnh,bsnh->bts", rotated(q, positions), rotated(k, positions))

    np.testing.assert_allclose(products(0), products(37), atol=2e-4)


@pytest.mark.parametrize("options", [{"theta": 0.0}, {"factor": 0.5}])
def test_meaningless_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RopeConfig(**options)


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="even `head_dim`; got 7"):
        rope_frequencies(RopeConfig(), 7)
