"""Learning rate schedules: pure functions of the number of completed updates."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Schedule = Callable[[Int[Array, "..."] | int], Float[Array, "..."]]
"""`completed updates -> learning rate of the next one`."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Rise, hold and fall of the learning rate.

    Attributes:
        peak: Highest learning rate, reached once the warm-up is over.
        kind: How it falls: cosine or linear (from the warm-up to the last update), wsd (hold,
            then fall as 1 - sqrt over the last `decay_fraction`) or constant (never).
        warmup_steps: Updates over which it rises linearly from zero (which no update sees).
        final_fraction: What it falls to, as a fraction of the peak; constant ignores it.
        decay_fraction: Part of all updates over which wsd falls; the other kinds ignore it.
    """

    peak: float = 1e-3
    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ValueError(
                f"`peak` must be a positive learning rate; got {self.peak}. Choose 1e-3."
            )
        if self.warmup_steps < 0:
            raise ValueError(
                f"`warmup_steps` must not be negative; got {self.warmup_steps}. "
                "Choose 0 for no warm-up."
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"`final_fraction` must be in [0, 1], a fraction of the peak; got "
                f"{self.final_fraction}. Choose 0.1 to end at a tenth of the peak."
            )
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(
                f"`decay_fraction` must be in (0, 1], a fraction of all updates; got "
                f"{self.decay_fraction}. Choose 0.2 to fall over the last fifth."
            )


def fit_warmup(config: ScheduleConfig, steps: int) -> ScheduleConfig:
    """Shorten a warm-up that takes more than half of a short run, such as a first trial."""
    if config.warmup_steps <= steps // 2:
        return config
    return dataclasses.replace(config, warmup_steps=steps // 2)


def make_schedule(config: ScheduleConfig, steps: int) -> Schedule:
    r"""Make the schedule of a run.

    With $w$ warm-up updates, $n$ in all, a peak $p$ and a floor $f$, the update that follows $t$
    completed ones has the learning rate

    $$\eta_t = \begin{cases} p\,(t+1)/(w+1) & t < w \\ f + (p - f)\,s(x_t) & t \ge w \end{cases}
    \qquad x_t = \mathrm{clip}\left(\frac{t - d}{n - d}, 0, 1\right)$$

    where $d$ is when the fall begins ($w$; for wsd $n - \mathrm{round}(n \cdot
    \mathtt{decay\_fraction})$) and $s(x)$ is $(1 + \cos \pi x)/2$ for cosine, $1 - x$ for linear,
    $1 - \sqrt{x}$ for wsd and 1 for constant. The first update has a learning rate above zero; the
    peak comes at $t = w$; the floor would come at $t = n$, one update after the last.

    Args:
        config: Shape of the schedule.
        steps: n, updates in all, at least 1.

    Returns:
        A function of the number of completed updates (0 before the first), traced or not.

    Raises:
        ValueError: If the warm-up does not end before the fall begins.

    Reference: Loshchilov and Hutter, "SGDR", arXiv:1608.03983, eq. 5 (cosine); nanoGPT's
    `get_lr` (warm-up); Hägele et al., arXiv:2405.18392 (wsd, with their "1-sqrt" cooldown).
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1; got {steps}. Choose how long to train.")
    start = config.warmup_steps
    if config.kind == "wsd":
        start = steps - max(1, round(steps * config.decay_fraction))
    if config.warmup_steps > min(start, steps):
        raise ValueError(
            f"The warm-up must end before the learning rate falls; got {config.warmup_steps} "
            f"warmup_steps and {min(start, steps)} updates before the fall. "
            f"Lower warmup_steps to {min(start, steps)} or train for longer."
        )
    floor = config.peak * config.final_fraction

    def schedule(step: Int[Array, "..."] | int) -> Float[Array, "..."]:
        t = jnp.asarray(step, jnp.float32)
        x = jnp.clip((t - start) / max(1, steps - start), 0, 1)
        match config.kind:
            case "cosine":
                shape = (1 + jnp.cos(jnp.pi * x)) / 2
            case "linear":
                shape = 1 - x
            case "wsd":
                shape = 1 - jnp.sqrt(x)
            case "constant":
                shape = jnp.ones_like(x)
        rise = config.peak * (t + 1) / (config.warmup_steps + 1)
        return jnp.where(t < config.warmup_steps, rise, floor + (config.peak - floor) * shape)

    return schedule
