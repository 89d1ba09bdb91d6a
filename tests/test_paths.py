import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from genai_jax.paths import leaf_name, map_named, named_leaves


class Linear(nnx.Module):
    def __init__(self, size: int) -> None:
        self.kernel = nnx.Param(jnp.zeros((2, size)))


class Attention(nnx.Module):
    def __init__(self) -> None:
        self.query = Linear(3)
        self.value = Linear(5)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([Attention(), Attention()])
        self.scale = nnx.Param(jnp.ones(7))


def test_names_of_a_model_are_the_paths_of_its_attributes():
    """Without what Flax adds below a parameter; a projection called `value` keeps its name."""
    named = named_leaves(Model())
    assert {name: leaf.shape for name, leaf in named} == {
        "layers/0/query/kernel": (2, 3),
        "layers/0/value/kernel": (2, 5),
        "layers/1/query/kernel": (2, 3),
        "layers/1/value/kernel": (2, 5),
        "scale": (7,),
    }


def test_names_follow_every_kind_of_container():
    tree = {"a": [1, (2, 3)], "b": {"c": 4}, "none": None}
    assert named_leaves(tree) == [("a/0", 1), ("a/1/0", 2), ("a/1/1", 3), ("b/c", 4)]
    assert named_leaves(5) == [("", 5)]


def test_order_is_that_of_the_leaves():
    tree = {"z": 1, "a": {"y": 2, "b": 3}, "m": [4, 5]}
    assert [leaf for _, leaf in named_leaves(tree)] == jax.tree.leaves(tree)


def test_map_gives_name_and_leaves_and_keeps_the_structure():
    tree = {"a": [1, 2], "b": 3}
    mapped = map_named(lambda name, x, y: f"{name}={x + y}", tree, {"a": [10, 20], "b": 30})
    assert mapped == {"a": ["a/0=11", "a/1=22"], "b": "b=33"}


def test_map_over_a_model_gives_a_model():
    sizes = map_named(lambda name, leaf: leaf.size if "query" in name else 0, Model())
    assert isinstance(sizes, Model)
    assert [leaf for _, leaf in named_leaves(sizes)] == [6, 0, 6, 0, 0]


def test_map_refuses_trees_that_differ():
    with pytest.raises(ValueError, match=r"Dict key mismatch|structure"):
        map_named(lambda name, x, y: x, {"a": 1}, {"b": 1})


def test_only_a_last_value_is_left_out():
    def path(*names: str) -> tuple[jax.tree_util.GetAttrKey, ...]:
        return tuple(jax.tree_util.GetAttrKey(name) for name in names)

    assert leaf_name(path("value", "kernel", "value")) == "value/kernel"
    assert leaf_name(path("value")) == "value"
    assert leaf_name(path("my_value")) == "my_value"
