"""The train step: gradient, accumulate, clip, update, average. One for every model and objective.

Rows are dealt out over the mesh. The axis `data` is manual (`jax.shard_map`): each of its members
sums the gradient of its own rows over all microbatches, and one reduction ends it. The axis `fsdp`
is the compiler's: it gathers parameters where they are used and scatters gradients where they are
made.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from genai_jax.parallel.sharding import replicated
from genai_jax.training.ema import Average, update_average
from genai_jax.training.partition import Trains, trainable, with_trainable
from genai_jax.training.passes import ONE_PASS, Passes, in_passes
from genai_jax.training.state import TrainState
from genai_jax.types import Array, Batch, Metrics, Objective, PyTree, Terms

Leaves = list[Array]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The jitted step, `(state, batch) -> (state, metrics)`, which donates its state.

    Taking a state of a thousand arrays in hundreds of modules apart and putting it together again
    is 3 ms of Python, during which a CPU's device waits for its core: 10 % of the step of a small
    U-Net (benchmarks/README.md). So whoever takes many steps keeps the leaves, and puts them
    together where somebody wants to look.

    Attributes:
        on_leaves: `(leaves of a state, batch) -> (leaves, metrics)`; donates the leaves.
        structure: JAX's tree structure of the state.
    """

    on_leaves: Callable[[Leaves, Batch], tuple[Leaves, Metrics]]
    structure: Any

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take a step from a whole state to a whole one."""
        leaves, metrics = self.on_leaves(self.leaves(state), batch)
        return self.whole(leaves), metrics

    def leaves(self, state: TrainState) -> Leaves:
        """Take a state apart.

        Raises:
            ValueError: If it is not built like the one that the step was made for.
        """
        leaves: Leaves = self.structure.flatten_up_to(state)
        return leaves

    def whole(self, leaves: Leaves) -> TrainState:
        """Put a state together."""
        state: TrainState = self.structure.unflatten(leaves)
        return state


def row_keys(
    seed: int, step: Array | int, rows: int, purpose: str = "train", *, first: Array | int = 0
) -> Array:
    """Give every row of the global batch its key, whatever the devices and the microbatches.

    Args:
        seed: Of the run.
        step: Number of completed updates.
        rows: B.
        purpose: What the noise is for; other purposes give other keys.
        first: Number of the first row.
    """
    key = _key_for(purpose, seed, step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def stratified_times(seed: int, step: Array | int, rows: int) -> Float[Array, " b"]:
    r"""Give every row of the global batch a number in [0, 1), one in each b-th of it.

    $(u + i / b) \bmod 1$ for row i, one uniform u a step: each is uniform on its own, and together
    they are spread evenly, so that a mean over noise levels varies less from step to step.

    Args:
        seed: Of the run.
        step: Number of completed updates.
        rows: b, of the global batch.

    Reference: Kingma et al., arXiv:2107.00630, appendix I.1.
    """
    u = jax.random.uniform(_key_for("time", seed, step))
    return (u + jnp.arange(rows, dtype=jnp.float32) / rows) % 1


def _key_for(purpose: str, seed: int, step: Array | int) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, crc32(purpose.encode()))


def split_rows(batch: Batch, parts: int) -> Batch:
    """Cut a batch into microbatches, `[parts, B / parts, ...]`: row i goes to part i mod `parts`.

    So every device keeps its own rows.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)


def loss_of(terms: Terms, totals: dict[str, Array]) -> Array:
    r"""Combine terms as $\sum_k c_k \cdot sum_k / total_k$; a total of zero counts as one."""
    return sum(
        (
            term.coefficient * term.sum / jnp.where(totals[name] == 0, 1, totals[name])
            for name, term in terms.items()
            if term.coefficient
        ),
        start=jnp.zeros((), jnp.float32),
    )


def global_gradients(
    objective: Objective,
    model: PyTree,
    batch: Batch,
    context: PyTree,
    microbatches: int,
    over_data: Callable[[PyTree], PyTree],
    *,
    unroll: bool = False,
    trains: Trains = None,
    batch_means: Objective | None = None,
) -> tuple[PyTree, Metrics]:
    """Sum gradients and metrics over the microbatches of these rows, then `over_data`.

    Weights depend on the batch alone: their totals over the global batch come first, so that each
    microbatch can divide by them at once and the cut changes nothing. Arguments: `make_train_step`.
    """
    parts = split_rows(batch, microbatches)
    if batch_means is not None:
        context = context | {"batch_means": _means(batch_means, model, parts, context, over_data)}

    def weights_of(part: Batch) -> dict[str, Array]:
        # Whatever else the objective computes here is unused, and the compiler leaves it out.
        terms = objective(model, part, context)
        return {name: jax.lax.stop_gradient(term.weight) for name, term in terms.items()}

    totals = over_data(jax.tree.map(jnp.sum, jax.vmap(weights_of)(parts)))

    def loss(training: PyTree, part: Batch) -> tuple[Array, dict[str, Array]]:
        terms = objective(with_trainable(model, training, trains), part, context)
        return loss_of(terms, totals), {name: term.sum for name, term in terms.items()}

    gradients_of = jax.grad(loss, has_aux=True)
    training = trainable(model, trains)
    first = jax.tree.map(lambda x: x[0], parts)
    if microbatches == 1:
        summed = gradients_of(training, first)
    else:

        def add(summed: PyTree, part: Batch) -> tuple[PyTree, None]:
            part = _after(summed, part) if unroll else part
            return jax.tree.map(jnp.add, summed, gradients_of(training, part)), None

        shapes = jax.eval_shape(gradients_of, training, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        summed, _ = jax.lax.scan(add, zeros, parts, unroll=unroll)
    gradients, sums = over_data(summed)
    return gradients, {name: (sums[name], totals[name]) for name in sums}


def _means(
    objective: Objective,
    model: PyTree,
    parts: Batch,
    context: PyTree,
    over_data: Callable[[PyTree], PyTree],
) -> dict[str, Array]:
    """Compute means over the global batch, one microbatch after the other, without a gradient."""

    def sums(part: Batch) -> dict[str, tuple[Array, Array]]:
        terms = objective(model, part, context)
        return {name: (term.sum, term.weight) for name, term in terms.items()}

    totals = over_data(jax.tree.map(jnp.sum, jax.lax.map(sums, parts)))
    return {
        name: jax.lax.stop_gradient(total / jnp.where(weight == 0, 1, weight))
        for name, (total, weight) in totals.items()
    }


def _after(done: PyTree, part: Batch) -> Batch:
    """Have a part of a batch wait until other arrays are computed, by adding zero times them.

    Out of a loop the CPU's compiler would interleave the parts and hold all of them in memory; it
    drops optimization barriers before it decides on the order.
    """
    zero = 0 * sum(leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in jax.tree.leaves(done))
    return {
        name: x + zero.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in part.items()
    }


def make_gradients(
    objective: Objective,
    mesh: Mesh,
    microbatches: int = 1,
    *,
    unroll: bool = False,
    trains: Trains = None,
    batch_means: Objective | None = None,
) -> Callable[[PyTree, Batch, PyTree], tuple[PyTree, Metrics]]:
    """Make `(model, batch, context) -> (gradients, metrics)` over a mesh; to be called in `jit`.

    Gradients are those of what trains. Arguments: `make_train_step`.
    """
    members = mesh.shape["data"]

    def over_data(tree: PyTree) -> PyTree:
        return _reduce(tree, flat=members == mesh.size and jax.default_backend() == "cpu")

    def gradients(model: PyTree, batch: Batch, context: PyTree) -> tuple[PyTree, Metrics]:
        return global_gradients(
            objective,
            model,
            batch,
            context,
            microbatches,
            over_data if members > 1 else lambda tree: tree,
            unroll=unroll,
            trains=trains,
            batch_means=batch_means,
        )

    if members == 1:
        return gradients
    return jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=P(),
        axis_names={"data"},
        check_vma=False,
    )


def _make_update(
    gradients_of: Callable[[PyTree, Batch, PyTree], tuple[PyTree, Metrics]],
    optimizer: optax.GradientTransformation,
    seed: int,
    clip_norm: float | None,
    ema: Average | None,
    traces: Mapping[str, Average],
    trains: Trains,
) -> Callable[[TrainState, Array, Batch], tuple[TrainState, Metrics]]:
    """Make one update of the parameters and their averages. Arguments: `make_train_step`."""

    def update(state: TrainState, number: Array, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        batch = batch | {
            "key": row_keys(seed, number, rows),
            "stratified": stratified_times(seed, number, rows),
        }
        gradients, metrics = gradients_of(state.model, batch, state.context)
        norm = optax.tree.norm(gradients)
        if clip_norm is not None:
            scale = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
            gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        training = trainable(state.model, trains)
        updates, opt_state = optimizer.update(gradients, state.opt_state, training)
        model = with_trainable(state.model, optax.apply_updates(training, updates), trains)
        metrics |= {"grad_norm": (norm, jnp.ones((), jnp.float32))}

        def move(average: PyTree, rule: Average) -> PyTree:
            return update_average(average, model, rule.share(number))

        after = dataclasses.replace(
            state,
            model=model,
            opt_state=opt_state,
            ema=state.ema if ema is None else move(state.ema, ema),
            traces={name: move(state.traces[name], rule) for name, rule in traces.items()}
            or state.traces,
        )
        return after, metrics

    return update


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    like: TrainState,
    *,
    seed: int,
    microbatches: int = 1,
    unroll: bool = False,
    clip_norm: float | None = 1.0,
    ema: Average | None = None,
    traces: Mapping[str, Average] | None = None,
    trains: Trains = None,
    batch_means: Objective | None = None,
    passes: Passes = ONE_PASS,
    next_context: Callable[[PyTree, Batch], PyTree] | None = None,
) -> TrainStep:
    r"""Make the jitted step.

    Args:
        objective: `(model, batch, context) -> Terms`.
        optimizer: Of Optax, without clipping.
        mesh: With the axes `data` and `fsdp`.
        like: The state that it will be given, or its description: says how the new one is laid
            out.
        seed: Of the noise that the rows get.
        microbatches: How many parts a batch is computed in, one after the other, to save memory;
            the numbers are those of one part.
        unroll: Whether the parts are written out one by one instead of looped over: slower to
            compile. For convolutions on a CPU, whose gradient is tens of times slower in a loop.
        clip_norm: The gradient is scaled to this global norm where it is longer; None never.
        ema: How the average of the parameters moves; the state must have one. None has none.
        traces: The same of the averages that are kept for `posthoc_ema`, by name.
        trains: Says by its name whether a parameter trains; the state must be made with the same.
        batch_means: `(model, batch, context) -> Terms`, for an objective that is no sum over rows:
            these means over the rows of an update come first, without a gradient, and the
            objective finds them as `context["batch_means"]`. The context must be a dictionary.
        passes: How many updates are made of a batch, and of which of its rows.
        next_context: What the context becomes after the updates.

    Returns:
        `(state, batch) -> (state, metrics)`; metrics are (sum, weight): one for every term of the
        objective, and `grad_norm`, before clipping; over all updates.

    Reference: clipping: Pascanu et al., arXiv:1211.5063, algorithm 1.
    """
    gradients_of = make_gradients(
        objective, mesh, microbatches, unroll=unroll, trains=trains, batch_means=batch_means
    )
    update = _make_update(gradients_of, optimizer, seed, clip_norm, ema, traces or {}, trains)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        check_rows(rows, mesh, microbatches * passes.minibatches)
        batch = batch | {"step": jnp.broadcast_to(state.step, rows)}
        after, metrics = in_passes(update, passes, state, batch, seed, mesh)
        if next_context is not None:
            after = dataclasses.replace(after, context=next_context(state.context, batch))
        return dataclasses.replace(after, step=state.step + 1), metrics

    structure: Any = jax.tree.structure(like)

    def on_leaves(leaves: Leaves, batch: Batch) -> tuple[Leaves, Metrics]:
        after, metrics = train_step(structure.unflatten(leaves), batch)
        return structure.flatten_up_to(after), metrics

    shardings = [leaf.sharding for leaf in jax.tree.leaves(like)], replicated(mesh)
    return TrainStep(jax.jit(on_leaves, donate_argnums=0, out_shardings=shardings), structure)


def check_rows(rows: int, mesh: Mesh, microbatches: int) -> None:
    """Refuse a batch that devices and microbatches do not divide.

    Raises:
        ValueError: Saying which batch would do.
    """
    devices = mesh.size
    if rows % (devices * microbatches):
        unit = devices * microbatches
        near = max(unit, round(rows / unit) * unit)
        raise ValueError(
            f"`batch_size` must be divisible by devices × microbatches; got {rows} rows, {devices} "
            f"devices and {microbatches} microbatches. Choose batch_size {near}, or other "
            "microbatches."
        )


def _reduce(tree: PyTree, *, flat: bool) -> PyTree:
    """Add up over the axis `data`; `flat`: all leaves in one reduction.

    Accelerators merge small reductions by themselves. The CPU does not, and waits for its slowest
    device once for each of them.
    """
    if not flat:
        return jax.lax.psum(tree, "data")
    vector, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.psum(vector, "data"))
