"""One storage format: stacked on disk, whatever the run holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import replicated
from genai_jax.training.storage import StorageError, from_storage, storage_like, to_storage


def layer(seed):
    values = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    return {"kernel": jnp.asarray(values), "bias": jnp.asarray(values[0])}


def unrolled(layers=3):
    return {"embedding": jnp.arange(4.0), "layers": tuple(layer(i) for i in range(layers))}


def scanned(layers=3):
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(layer(i) for i in range(layers)))
    return {"embedding": jnp.arange(4.0), "layers": stacked}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_unrolled_and_scanned_are_stored_alike():
    one, other = to_storage(unrolled()), to_storage(scanned())
    assert list(one) == list(other) == ["embedding", "layers/bias", "layers/kernel"]
    assert one["layers/kernel"].shape == (3, 2, 3)
    assert_equal(one, other)


def test_either_is_read_from_the_other():
    assert_equal(from_storage(to_storage(unrolled()), scanned()), scanned())
    assert_equal(from_storage(to_storage(scanned()), unrolled()), unrolled())


@given(st.integers(1, 12), st.integers(1, 3))
def test_round_trip_of_nested_layers(outer, inner):
    """Eleven layers and more: stored in the order of numbers, not of names."""
    tree = {"layers": [{"layers": [jnp.array([i, j]) for j in range(inner)]} for i in range(outer)]}
    stored = to_storage(tree)
    assert stored["layers/layers"].shape == (outer, inner, 2)
    np.testing.assert_array_equal(stored["layers/layers"][..., 0], np.indices((outer, inner))[0])
    assert_equal(from_storage(stored, tree), tree)


def test_optimizer_state_is_stacked_like_its_parameters():
    optimizer = optax.adam(0.1)
    stored = [to_storage(optimizer.init(tree)) for tree in (unrolled(), scanned())]
    assert list(stored[0]) == list(stored[1])
    assert any(name.endswith("mu/layers/kernel") for name in stored[0])


def test_description_is_that_of_the_stored_arrays():
    sharding = replicated(make_mesh())
    tree = jax.device_put(unrolled(), sharding)
    described, stored = storage_like(tree), to_storage(tree)
    assert {n: (x.shape, x.dtype) for n, x in described.items()} == {
        n: (x.shape, x.dtype) for n, x in stored.items()
    }
    assert all(
        stored[n].sharding.is_equivalent_to(x.sharding, stored[n].ndim)
        for n, x in described.items()
    )


def test_keys_are_stored_as_their_data_and_come_back():
    tree = {"key": jax.random.key(3)}
    restored = from_storage(to_storage(tree), tree)
    assert jax.random.key_impl(restored["key"]) == jax.random.key_impl(tree["key"])
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(tree["key"])


def test_layers_of_several_shapes_are_stored_one_by_one():
    tree = {"layers": (jnp.zeros(2), jnp.zeros(3))}
    assert list(to_storage(tree)) == ["layers/0", "layers/1"]
    assert_equal(from_storage(to_storage(tree), tree), tree)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flat: flat.pop("layers/bias"), "missing: layers/bias"),
        (lambda flat: flat.update(other=jnp.zeros(1)), "unexpected: other"),
        (
            lambda flat: flat.update(embedding=jnp.zeros(5)),
            r"misshapen: embedding is float32\[5\], needed float32\[4\]",
        ),
        (
            lambda flat: flat.update(embedding=jnp.zeros(4, jnp.int32)),
            r"misshapen: embedding is int32\[4\], needed float32\[4\]",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_what_does_not_fit_is_named(change, words):
    flat = to_storage(unrolled())
    change(flat)
    with pytest.raises(StorageError, match=words):
        from_storage(flat, unrolled())
