"""Optimizers: AdamW, Lion, Adafactor and Muon, for layers that are stacked or not.

Whatever is treated apart (what decays, what Muon takes, which axes number layers) is told by name.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from genai_jax.training.muon import scale_by_muon
from genai_jax.training.named_arrays import Arrays, MatrixAxes, as_matrices, by_name, divide
from genai_jax.training.schedules import Schedule
from genai_jax.types import PyTree

# Adafactor's epsilon_1, added to squared gradients, and epsilon_2, the least scale of a parameter.
_ADAFACTOR_EPS = 1e-30
_ADAFACTOR_MIN_SCALE = 1e-3

# `layers/` that no number follows: one leading axis numbers the layers.
_STACK = re.compile(r"(?:(?<=/)|^)layers/(?!\d+(?:/|$))")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates. The learning rate is the schedule's, for all parameters alike.

    Attributes:
        name: adamw; lion (wants a 3 to 10 times lower learning rate, as much more weight decay,
            and beta2 0.99); adafactor (no momentum, little memory); muon (hidden matrices by
            Muon, all else by AdamW).
        weight_decay: Fraction of a decaying parameter taken off by each update, per unit of
            learning rate.
        beta1: Decay of the mean of gradients a step (adamw, muon's AdamW); lion: weight of the
            mean in the update.
        beta2: Decay of the mean of squared gradients a step (adamw, muon's AdamW); lion: decay of
            the mean of gradients.
        eps: Added to the root of the mean squared gradient (adamw, muon's AdamW).
        muon_momentum: Decay of the sum of gradients a step, Nesterov's kind.
        muon_ns_steps: Newton-Schulz iterations a step.
        muon_rms: Root mean square of Muon's update per unit of learning rate; 0.2 is AdamW's, so
            that learning rates and weight decays carry over.
        adafactor_decay: Exponent c of the decay 1 - t^-c of squared gradients at update t.
        adafactor_clip: Greatest root mean square of a tensor's update per unit of learning rate.
        adafactor_min_dim: Smallest side of a matrix whose squared gradients are factored.
        adafactor_relative: Whether updates are multiplied by the root mean square of their tensor,
            as in the paper: the learning rate is then relative (about 0.01). Without, it is
            AdamW's.
    """

    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    muon_momentum: float = 0.95
    muon_ns_steps: int = 5
    muon_rms: float = 0.2
    adafactor_decay: float = 0.8
    adafactor_clip: float = 1.0
    adafactor_min_dim: int = 128
    adafactor_relative: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for field in ("beta1", "beta2", "muon_momentum"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise ValueError(f"`{field}` must be in [0, 1); got {value}. Choose 0.9 to 0.999.")
        for field in ("eps", "muon_rms", "adafactor_decay", "adafactor_clip"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                default = type(self).__dataclass_fields__[field].default
                raise ValueError(f"`{field}` must be positive; got {value}. Choose {default}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(
                f"`weight_decay` must not be negative; got {self.weight_decay}. Choose 0 for none."
            )
        for field, least in (("muon_ns_steps", 1), ("adafactor_min_dim", 2)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"`{field}` must be at least {least}; got {value}.")


def make_optimizer(
    config: OptimizerConfig,
    schedule: Schedule,
    *,
    decays: Callable[[str], bool],
    muon: Callable[[str], MatrixAxes | None],
    mesh: Mesh | None = None,
) -> optax.GradientTransformation:
    r"""Make the optimizer of a run: $\theta \leftarrow \theta - \eta_t (u_t + \lambda \theta)$.

    $u_t$ is the direction of the optimizer that `config` names, $\eta_t$ the learning rate and
    $\lambda$ the weight decay of the parameters that decay. Gradients come clipped already.
    Parameters may have any float dtype; the state and the updates are float32.

    Args:
        config: Which optimizer, and its constants.
        schedule: Learning rate as a function of the number of completed updates.
        decays: Says by a parameter's name whether weight decay pulls at it.
        muon: Says by its name whether a parameter is a hidden matrix, and then how many input and
            output axes it has. Axes before these number matrices (layers, experts) which are
            treated one by one. None: not a hidden matrix.
        mesh: Over which Muon's work is dealt out; None leaves that to the compiler.

    Returns:
        A transformation from gradients to updates, for `optax.apply_updates`. In the paths of its
        state, whatever has the shape of a parameter ends with the name of the parameter.

    Reference: Loshchilov and Hutter, arXiv:1711.05101, alg. 2 (AdamW; here $\lambda$ is multiplied
    by $\eta_t$, as in PyTorch); Chen et al., arXiv:2302.06675, alg. 2 (Lion); `scale_by_adafactor`;
    `scale_by_muon`.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    match config.name:
        case "adamw":
            direction = adam
        case "lion":
            direction = optax.scale_by_lion(config.beta1, config.beta2)
        case "adafactor":
            direction = scale_by_adafactor(config, muon)
        case "muon":
            direction = divide(
                {
                    "muon": scale_by_muon(
                        config.muon_momentum, config.muon_ns_steps, config.muon_rms, muon, mesh
                    ),
                    "adamw": adam,
                },
                lambda name: "adamw" if muon(name) is None else "muon",
            )
    return by_name(
        optax.named_chain(
            ("direction", direction),
            (
                "decay",
                optax.add_decayed_weights(
                    config.weight_decay, lambda arrays: {name: decays(name) for name in arrays}
                ),
            ),
            ("learning_rate", optax.scale_by_learning_rate(schedule)),
        )
    )


class FactoredState(NamedTuple):
    """State of Adafactor.

    Attributes:
        step: Completed updates.
        squares: By name, the mean squared gradient: whole, or as `row` and `column` means.
    """

    step: Int[Array, ""]
    squares: Arrays


def scale_by_adafactor(
    config: OptimizerConfig, axes: Callable[[str], MatrixAxes | None]
) -> optax.GradientTransformation:
    r"""Make Adafactor's direction: gradients over their root mean square, rank one for matrices.

    $R_t$ and $C_t$ are running means, with decay $1 - t^{-c}$, of $G_t^2 + \epsilon_1$ over columns
    and over rows; $\hat V_t = R_t C_t^\top / \mathrm{mean}(R_t)$; $U_t = G_t / \sqrt{\hat V_t}$;
    $u_t = U_t / \max(1, \mathrm{RMS}(U_t) / d)$. Relative updates are multiplied by
    $\max(\epsilon_2, \mathrm{RMS}(\theta))$. Other tensors, and matrices that are small, keep
    $\hat V_t$ whole.

    All means are those of one tensor of one layer. Hidden matrices are what `axes` says; of the
    others those are factored that have two axes, behind the axis of layers if there is one.

    Args:
        config: $c$ (`adafactor_decay`), $d$ (`adafactor_clip`), whether updates are relative, and
            the smallest side that is factored.
        axes: Input and output axes of the hidden matrices, by name.

    Reference: Shazeer and Stern, "Adafactor", arXiv:1804.04235, algs. 4 and 5, with $R$ and $C$ as
    means instead of sums, which leaves $\hat V$ as it is. Weight decay is not multiplied by the
    parameter's scale.
    """

    def view(name: str, array: Array) -> tuple[Array, bool]:
        """Reshape to [*stack, rows, columns] and say so, or to [*stack, elements]."""
        stack = len(_STACK.findall(name))
        shape = axes(name) or ((1, 1) if array.ndim - stack == 2 else None)
        if shape is not None:
            matrices = as_matrices(name, array, shape)
            if min(matrices.shape[-2:]) >= config.adafactor_min_dim:
                return matrices, True
            stack = matrices.ndim - 2
        return array.reshape(*array.shape[:stack], -1), False

    def init(params: Arrays) -> FactoredState:
        squares: Arrays = {}
        for name, array in params.items():
            tensors, factored = view(name, array)
            means = {"row": tensors[..., 0], "column": tensors[..., 0, :]} if factored else array
            squares[name] = jax.tree.map(jnp.zeros_like, means)
        return FactoredState(jnp.zeros((), jnp.int32), squares)

    def direction(name: str, gradient: Array, squares: PyTree, param: Array) -> Array:
        tensors, factored = view(name, gradient)
        if factored:
            tensors = tensors * _factored_inverse_root(squares)
        else:
            tensors = tensors * jax.lax.rsqrt(squares.reshape(tensors.shape))
        over = (-2, -1) if factored else -1
        tensors = tensors / jnp.maximum(1, _rms(tensors, over) / config.adafactor_clip)
        if config.adafactor_relative:
            scale = _rms(view(name, param)[0], over)
            tensors = tensors * jnp.maximum(_ADAFACTOR_MIN_SCALE, scale)
        return tensors.reshape(gradient.shape)

    def update(
        gradients: Arrays, state: FactoredState, params: Arrays
    ) -> tuple[Arrays, FactoredState]:
        step = state.step + 1
        share = step.astype(jnp.float32) ** -config.adafactor_decay
        updates: Arrays = {}
        squares: Arrays = {}
        for name, gradient in gradients.items():
            square = jnp.square(gradient) + _ADAFACTOR_EPS
            tensors, factored = view(name, square)
            new = {"row": tensors.mean(-1), "column": tensors.mean(-2)} if factored else square
            squares[name] = jax.tree.map(
                lambda old, new: old + share * (new - old), state.squares[name], new
            )
            updates[name] = direction(name, gradient, squares[name], params[name])
        return updates, FactoredState(step, squares)

    return optax.GradientTransformation(init, update)


def _factored_inverse_root(means: dict[str, Array]) -> Float[Array, "*stack rows columns"]:
    """Estimate one over the root of the mean square from the means of rows and columns."""
    # Root by root: the product of two means as small as epsilon_1 is zero in float32.
    row = jax.lax.rsqrt(means["row"] / means["row"].mean(-1, keepdims=True))
    column = jax.lax.rsqrt(means["column"])
    return row[..., :, None] * column[..., None, :]


def _rms(x: Float[Array, "..."], over: int | tuple[int, ...]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.square(x).mean(over, keepdims=True))
