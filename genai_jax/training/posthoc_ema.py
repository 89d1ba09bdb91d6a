r"""Averages of the parameters, of any length, made after the training.

A run that keeps snapshots of a few power-function averages (`ema.PowerEMA`) has densities
$p_i(\tau)$ over its steps, each with its average. Whatever density is near to a weighted sum
$\sum_i w_i p_i$ has an average near to the same sum of the snapshots.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genai_jax.training.checkpoints import (
    DamagedCheckpoint,
    finished_steps,
    load_step,
    read_manifest,
)
from genai_jax.training.ema import LONGEST_SIGMA_REL, gamma_of
from genai_jax.types import PyTree

# Of the largest weight: far below what float32 snapshots can tell.
_NEGLIGIBLE = 1e-10
_SHORTEST_OFFERED = 1e-3


class Profile(NamedTuple):
    r"""A density over the steps of a run, $p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}$.

    Attributes:
        sigma_rel: Its length.
        step: Its end t.
    """

    sigma_rel: float
    step: int


class Reconstruction(NamedTuple):
    """An average that was made after the training.

    Attributes:
        model: The parameters, in the dtypes that were asked for.
        step: The last one that went into it.
        residual: Distance of the density that was reached from the one that was asked for, over the
            length of that one.
    """

    model: PyTree
    step: int
    residual: float


def inner_products(a: list[Profile], b: list[Profile]) -> Float[np.ndarray, "a b"]:
    r"""Compute $\langle p_i, p_j \rangle = \int_0^{\min(t_i, t_j)} p_i(\tau) p_j(\tau) d\tau$.

    $\frac{(\gamma_i + 1)(\gamma_j + 1)}{\gamma_i + \gamma_j + 1} \cdot
    \frac{1}{t} \left(\frac{s}{t}\right)^\gamma$, where t is the later of the two ends, $\gamma$ its
    exponent and s the earlier end: the paper's form, without powers that overflow.

    Reference: Karras et al., arXiv:2312.02696, appendix C.3.
    """
    gamma_a, gamma_b = (np.array([gamma_of(p.sigma_rel) for p in x], np.float64) for x in (a, b))
    end_a, end_b = (np.array([p.step for p in x], np.float64) for x in (a, b))
    gamma_a, end_a = gamma_a[:, None], end_a[:, None]
    late, early = np.maximum(end_a, end_b), np.minimum(end_a, end_b)
    gamma = np.where(end_a >= end_b, gamma_a, gamma_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (early / late) ** gamma / late


def fit_profile(known: list[Profile], wanted: Profile) -> tuple[Float[np.ndarray, " known"], float]:
    r"""Find the weights of known profiles whose sum is nearest to a wanted one, and its residual.

    Least squares of $\|\sum_i w_i p_i - p\|^2$ in float64, subject to $\sum_i w_i = 1$: parameters
    that do not move stay as they are. Without it a sum of 0.99 would shrink them all by 1 %, more
    than what averaging changes.

    Returns:
        w, and $\|\sum_i w_i p_i - p\| / \|p\|$.

    Reference: Karras et al., arXiv:2312.02696, section 3.2 and appendix C.3; the constraint is not
        theirs.
    """
    gram, right = inner_products(known, known), inner_products(known, [wanted])[:, 0]
    square = inner_products([wanted], [wanted])[0, 0]
    # In units of the profiles' own lengths; the last unknown is the constraint's multiplier.
    unit = 1 / np.sqrt(np.diag(gram))
    ones = unit / np.linalg.norm(unit)
    count = len(known)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram * unit[:, None] * unit
    system[:count, count] = system[count, :count] = ones
    sides = np.append(right * unit, 1 / np.linalg.norm(unit))
    weights = np.linalg.lstsq(system, sides, rcond=1e-14)[0][:count] * unit
    missed = square - 2 * weights @ right + weights @ gram @ weights
    return weights, float(np.sqrt(max(missed, 0.0) / square))


def reconstruct(
    folder: Path,
    like: PyTree,
    sigma_rel: float,
    *,
    step: int | None = None,
    max_residual: float = 0.1,
) -> Reconstruction:
    """Make the average of a given length from the snapshots of a run, read one after the other.

    Args:
        folder: Of the snapshots: `ema` in that of the run.
        like: The model, as `jax.ShapeDtypeStruct`s with shardings.
        sigma_rel: Length of the average; see `PowerEMA`.
        step: One of the snapshots' steps, at which it ends; None is the last. Later ones are not
            used.
        max_residual: Largest residual that is accepted.

    Raises:
        ValueError: If there are no snapshots, none at that step, or if no sum of them comes near to
            that length.
        StorageError: If the snapshots are those of another model.
    """
    damaged: set[int] = set()
    while True:
        known = _profiles(folder, damaged, step)
        end = max(profile.step for profile in known)
        weights, residual = fit_profile(known, Profile(sigma_rel, end))
        if residual > max_residual:
            raise ValueError(_too_far(known, Profile(sigma_rel, end), residual, max_residual))
        at = end
        try:
            model = None
            for profile, weight in zip(known, weights, strict=True):
                if abs(weight) > _NEGLIGIBLE * np.abs(weights).max():
                    at = profile.step
                    part = _load_trace(folder, profile, like)
                    model = _add(model, part, jnp.float32(weight))
        except DamagedCheckpoint as error:
            _warn(at, error)
            damaged.add(at)
            continue
        cast = jax.tree.map(lambda x, y: x.astype(y.dtype), model, like)
        return Reconstruction(cast, end, residual)


@jax.jit
def _add(total: PyTree, part: PyTree, weight: Float[Array, ""]) -> PyTree:
    weighted = jax.tree.map(lambda x: weight * x, part)
    return weighted if total is None else jax.tree.map(jnp.add, total, weighted)


def _load_trace(folder: Path, profile: Profile, like: PyTree) -> PyTree:
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), like
    )
    name = str(profile.sigma_rel)
    return load_step(folder, profile.step, {name: described})[name]


def _profiles(folder: Path, damaged: set[int], last: int | None) -> list[Profile]:
    """List what there are snapshots of, up to a step."""
    steps = [step for step in finished_steps(folder) if step not in damaged]
    if not steps:
        raise ValueError(
            f"averages are made from a run's snapshots; there are none in {folder}. Train with "
            "--ema-traces 0.05 0.1, and wait for the first one."
        )
    if last is not None and last not in steps:
        near = sorted(sorted(steps, key=lambda step: abs(step - last))[:5])
        raise ValueError(
            f"`step` must be that of a snapshot; got {last}. Of those in {folder}, the nearest are "
            f"{', '.join(map(str, near))}."
        )
    found = []
    for step in steps:
        if last is None or step <= last:
            try:
                names: dict[str, Any] = read_manifest(folder / str(step))["arrays"]
            except DamagedCheckpoint as error:
                _warn(step, error)
                damaged.add(step)
                return _profiles(folder, damaged, last)
            lengths = sorted({name.split("/")[0] for name in names})
            found += [Profile(float(length), step) for length in lengths]
    return found


def _warn(step: int, error: DamagedCheckpoint) -> None:
    print(f"WARNING: snapshot {step} is damaged and left out: {error}", file=sys.stderr)


def _too_far(known: list[Profile], wanted: Profile, residual: float, most: float) -> str:
    offered = np.geomspace(_SHORTEST_OFFERED, LONGEST_SIGMA_REL, 200)[:-1]
    near = [
        length
        for length in sorted({*offered, *(p.sigma_rel for p in known if p.step == wanted.step)})
        if fit_profile(known, Profile(float(length), wanted.step))[1] <= most
    ]
    best = min(near, key=lambda length: abs(np.log(length / wanted.sigma_rel)))
    count = len({profile.step for profile in known})
    return (
        f"the length of an average must be one that the snapshots can represent; {count} of them, "
        f"up to step {wanted.step}, come within {residual:.0%} of `sigma_rel` "
        f"{wanted.sigma_rel:g}, and at most {most:.0%} is accepted. The nearest that they can is "
        f"{best:.3g}."
    )
