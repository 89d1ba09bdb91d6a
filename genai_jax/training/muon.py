"""Muon: momentum whose hidden matrices are made orthogonal, dealt out over the devices."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from genai_jax.parallel.sharding import constrain
from genai_jax.training.named_arrays import Arrays, MatrixAxes, as_matrices

# The quintic whose repetition pulls singular values towards one: steepest at zero, not exact.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Float[Array, "*stack rows columns"], steps: int
) -> Float[Array, "*stack rows columns"]:
    r"""Bring the singular values of each matrix near one: $USV^\top \to US'V^\top$, $S' \approx I$.

    Newton-Schulz: $X \leftarrow aX + (bA + cA^2)X$ with $A = XX^\top$, from $X = G / \|G\|_F$.
    Five steps leave singular values between about 0.7 and 1.2.

    Reference: Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
    kellerjordan.github.io/posts/muon (2024), with its coefficients; here in float32.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the smaller Gram matrix
    x = x / (jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)) + 1e-8)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def orthogonalize_all(matrices: Arrays, steps: int, mesh: Mesh | None = None) -> Arrays:
    """Orthogonalise many matrices: those of one shape together, dealt out over a mesh.

    Parameters are the same on all members of `data`, which would all do the same work. Instead each
    device takes whole matrices, and the results are gathered.

    Args:
        matrices: By name, each `[*stack, rows, columns]`.
        steps: Newton-Schulz iterations.
        mesh: With the axes `data` and `fsdp`; None leaves the layout to the compiler.
    """
    wide = {name: x.mT if x.shape[-2] > x.shape[-1] else x for name, x in matrices.items()}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, x in wide.items():
        groups.setdefault(x.shape[-2:], []).append(name)
    done: Arrays = {}
    for shape, names in groups.items():
        parts = [wide[name].reshape(-1, *shape) for name in names]
        ends = np.cumsum([len(part) for part in parts])
        stack = jnp.concatenate(parts)
        if mesh is not None:
            stack = jnp.pad(stack, ((0, -len(stack) % mesh.size), (0, 0), (0, 0)))
            stack = constrain(stack, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        stack = orthogonalize(stack, steps)
        if mesh is not None:
            columns = "fsdp" if shape[1] % mesh.shape["fsdp"] == 0 else None
            stack = constrain(stack, NamedSharding(mesh, PartitionSpec(None, None, columns)))
        for name, part in zip(names, jnp.split(stack, ends), strict=False):
            x = part.reshape(wide[name].shape)
            done[name] = x if x.shape == matrices[name].shape else x.mT
    return done


def scale_by_muon(
    momentum: float,
    steps: int,
    rms: float,
    axes: Callable[[str], MatrixAxes | None],
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    r"""Make Muon's direction: Nesterov momentum, orthogonalised matrix by matrix.

    $M_t = \mu M_{t-1} + G_t$ and $u_t = r \sqrt{\max(m, n)}\,\mathrm{NS}(\mu M_t + G_t)$ for
    matrices of $m \times n$: an orthogonal matrix has elements of root mean square
    $1 / \sqrt{\max(m, n)}$, so that the update's is about $r$, whatever the shape.

    Args:
        momentum: $\mu$, decay of the sum of gradients a step, in [0, 1).
        steps: Newton-Schulz iterations.
        rms: $r$, root mean square of the direction.
        axes: Input and output axes by name; never None for what this is given.
        mesh: Over which the matrices are dealt out.

    Reference: Jordan et al. (as in `orthogonalize`); Liu et al., "Muon is Scalable for LLM
    Training", arXiv:2502.16982, section 2.2 (the scale; $r$ = 0.2).
    """

    def view(name: str, array: Array) -> Array:
        shape = axes(name)
        assert shape is not None
        return as_matrices(name, array, shape)

    def directions(arrays: Arrays, params: object) -> Arrays:
        matrices = {name: view(name, array) for name, array in arrays.items()}
        done = orthogonalize_all(matrices, steps, mesh)
        return {
            name: (rms * math.sqrt(max(x.shape[-2:])) * x).reshape(arrays[name].shape)
            for name, x in done.items()
        }

    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(directions))
