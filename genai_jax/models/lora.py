"""Models with low-rank adapters: put on, taken off, merged into the kernels.

All of these are functions from a model to another one; layers may be stacked or a list, and both
hold the same numbers. What trains is told by name: `make_train_step(..., trains=is_adapter)`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from genai_jax.nn.linear import Linear
from genai_jax.nn.lora import Lora, LoraConfig, init_lora
from genai_jax.paths import named_leaves
from genai_jax.types import PyTree

Model = TypeVar("Model", bound=nnx.Module)

_PROJECTION = re.compile(r"(?:^|/)(?:attention/(?:query|key|value|output)|mlp/(?:gate|up|down))$")
_ADAPTER = re.compile(r"(?:^|/)lora/(?:a|b|magnitude)$")
_LAYER = re.compile(r"(?<=layers)/(\d+)(?=/)")


def is_adapter(name: str) -> bool:
    """Whether a parameter is a part of an adapter, such as `layers/attention/query/lora/a`."""
    return _ADAPTER.search(name) is not None


def projections(model: nnx.Module) -> dict[str, Linear]:
    """List what can be adapted, by name: the projections of attention and MLP of every layer.

    Stacked layers have one name for all, `layers/attention/query`; others one each,
    `layers/0/attention/query`.
    """
    named = (("/".join(map(str, path)), module) for path, module in nnx.iter_modules(model))
    return {
        name: module
        for name, module in named
        if isinstance(module, Linear) and _PROJECTION.search(name)
    }


def add_lora(model: Model, config: LoraConfig, key: PRNGKeyArray) -> Model:
    """Copy a model with new adapters, under which it computes what it did before.

    Args:
        model: A language model, or one that holds some; its kernels may be of 8-bit integers.
        config: Which kernels, and how. Of rank 0 it gives the model as it is.
        key: Of the adapters; what they draw does not depend on how layers are stored.

    Raises:
        ValueError: If it has adapters already, or lacks a projection that is named.
    """
    if config.rank == 0:
        return model
    found = projections(model)
    if any(linear.lora is not None for linear in found.values()):
        raise ValueError(
            "a model must have no adapters to be given some; this one has. Merge them "
            "(merge_lora) or take them off (without_lora) first."
        )
    known = {name.rsplit("/", 1)[1] for name in found}
    wanted = known if "all" in config.targets else set(config.targets)
    if not known or wanted - known:
        raise ValueError(
            f"`targets` must be projections that the model has: {', '.join(sorted(known))}; got "
            f"{', '.join(config.targets)}. Leave the others out."
        )
    return attach(
        model,
        {
            name: _draw(config, linear, name, key)
            for name, linear in found.items()
            if name.rsplit("/", 1)[1] in wanted
        },
    )


def attach(model: Model, adapters: Mapping[str, Lora]) -> Model:
    """Copy a model with these adapters and no others; its arrays are shared, not copied.

    Args:
        model: With adapters or without.
        adapters: By the names that `projections` gives; stacked where layers are.
    """
    model = nnx.clone(model)
    for name, linear in projections(model).items():
        lora = adapters.get(name)
        linear.lora = nnx.data(None) if lora is None else lora
    return model


def without_lora(model: Model) -> Model:
    """Copy a model without its adapters: the base, on the very same arrays.

    Within a jitted function it is free: the reference that a policy with adapters is held to.
    """
    return attach(model, {})


def with_base(model: Model, base: Model) -> Model:
    """Copy a model with its adapters on the parameters of another one.

    Args:
        model: With adapters.
        base: Of the same shape.
    """
    return attach(base, adapters_of(model))


def adapters_of(model: nnx.Module) -> dict[str, Lora]:
    """List the adapters by the name of what they adapt."""
    return {name: x.lora for name, x in projections(model).items() if x.lora is not None}


def merge_lora(model: Model) -> Model:
    """Copy a model with its adapters merged into the kernels: a plain model, as fast as one.

    Kernels of 8-bit integers become those of floating-point numbers that they stand for.
    """
    model = nnx.clone(model)
    for linear in projections(model).values():
        if linear.lora is None:
            continue
        kernel = over_stack(linear, _merged)(linear)
        linear.kernel = nnx.Param(kernel)
        linear.steps, linear.lora = nnx.data(None), nnx.data(None)
    return model


def _merged(linear: Linear) -> Array:
    assert linear.lora is not None
    dtype = linear.kernel[...].dtype if linear.steps is None else linear.steps[...].dtype
    whole = linear.lora.merged(linear.weights())
    return whole.astype(dtype).reshape(*linear.in_shape, *linear.out_shape)


def stack_of(linear: Linear) -> tuple[int, ...]:
    """Give the leading axes that count layers; none where it is but one."""
    shape = linear.kernel.shape
    return tuple(shape[: len(shape) - len(linear.in_shape) - len(linear.out_shape)])


def over_stack(linear: Linear, function: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function over the layers of a stack, if it is one."""
    for _ in stack_of(linear):
        function = jax.vmap(function)
    return function


def _draw(config: LoraConfig, linear: Linear, name: str, key: PRNGKeyArray) -> Lora:
    """Draw the adapter of a projection, or of one in every layer of a stack."""
    key = jax.random.fold_in(key, crc32(_LAYER.sub("", name).encode()))
    for layer in _LAYER.findall(name):
        key = jax.random.fold_in(key, int(layer))

    def fold(key: PRNGKeyArray, stack: tuple[int, ...]) -> Array:
        """Give every layer of a stack the key that it has by itself."""
        if not stack:
            return key
        indices = jnp.arange(stack[0])
        return jax.vmap(lambda i: fold(jax.random.fold_in(key, i), stack[1:]))(indices)

    def draw(linear: Linear, key: PRNGKeyArray) -> Lora:
        kernel = linear.weights().reshape(*linear.in_shape, *linear.out_shape)
        return init_lora(config, kernel, len(linear.in_shape), key)

    return over_stack(linear, draw)(linear, fold(key, stack_of(linear)))


def count_trained(model: PyTree, trains: Callable[[str], bool] = is_adapter) -> tuple[int, int]:
    """Count the parameters that train, and those of the model without its adapters.

    Args:
        model: Its arrays, or their descriptions.
        trains: Whether a parameter trains, by name.
    """
    sizes = [(name, leaf.size) for name, leaf in named_leaves(model)]
    trained = sum(size for name, size in sizes if trains(name))
    return trained, sum(size for name, size in sizes if not is_adapter(name))
