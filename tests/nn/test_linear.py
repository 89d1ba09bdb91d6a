import jax
import jax.numpy as jnp
import pytest

from genai_jax.nn.linear import Linear, scaled_std


@pytest.mark.parametrize("uniform", [False, True])
def test_kernels_begin_with_their_width(uniform):
    std = scaled_std(200, 100, 0.5)
    assert std == pytest.approx((0.5 / 150) ** 0.5)
    kernel = Linear((200,), (4, 25), jax.random.key(0), init_std=std, uniform=uniform).kernel[...]
    assert float(kernel.std()) == pytest.approx(std, rel=0.01)
    most = float(jnp.abs(kernel).max()) / std
    assert most <= 3**0.5 if uniform else most > 3
