r"""The noise process $x_t = \alpha_t x_0 + \sigma_t \epsilon$: one log-SNR, from which all follows.

Time t runs from 0 (data) to 1 (noise). A schedule is a function $\lambda(t) = \log \alpha_t^2 /
\sigma_t^2$, the log signal-to-noise ratio in nats, with $\lambda(0) = \infty$. A geometry says how
much of each there is in all: $\alpha^2 + \sigma^2 = 1$ (variance-preserving), $\alpha = 1$
(variance-exploding) or $\alpha + \sigma = 1$ (flow). Nothing else distinguishes the processes.

T steps of a discrete process are the times k / T, k = 1 ... T; step index k - 1 of the DDPM paper.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

Schedule = Literal["linear", "cosine", "sigmoid", "edm", "flow"]
Geometry = Literal["variance_preserving", "variance_exploding", "flow"]

# DDPM's betas are made for this many steps; the continuous schedule is their limit.
_DDPM_STEPS = 1000
_NO_SIGNAL = -80.0  # nats: alpha is 4e-18
_MAX_BETA = 0.999  # of the cosine schedule (arXiv:2102.09672, section 3.2)


@dataclasses.dataclass(frozen=True)
class Process:
    """How an image turns into noise.

    Attributes:
        schedule: linear (betas, DDPM), cosine (improved DDPM) and sigmoid preserve the variance;
            edm explodes it: sigma / alpha = sigma_max t; flow is the straight line from data to
            noise (rectified flow).
        num_steps: T of a discrete process, whose times are k / T; 0 is continuous time.
        beta_first: First beta of the linear schedule, of T = 1000.
        beta_last: Last beta of the linear schedule, of T = 1000.
        cosine_offset: s of the cosine schedule: keeps the first steps from being too small.
        sigmoid_start: Where the sigmoid schedule begins on the logistic curve.
        sigmoid_end: Where it ends.
        sigma_max: Largest sigma / alpha of the edm schedule, in units of the data.
        shift: Divides signal by noise: lambda(t) - 2 log(shift). Above 1 for images larger than
            those that the schedule was made for.
        log_snr_min: Least log-SNR of a continuous process, in nats: time is stretched so that t = 1
            has it; none leaves the schedule's own end.
        zero_terminal_snr: Whether the betas of a discrete process are rescaled so that nothing of
            the image is left at t = 1.
    """

    schedule: Schedule = "cosine"
    num_steps: int = 0
    beta_first: float = 1e-4
    beta_last: float = 0.02
    cosine_offset: float = 0.008
    sigmoid_start: float = -3.0
    sigmoid_end: float = 3.0
    sigma_max: float = 80.0
    shift: float = 1.0
    log_snr_min: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.num_steps < 0 or self.num_steps == 1:
            raise ValueError(
                f"`num_steps` must be 0 (continuous time) or at least 2; got {self.num_steps}."
            )
        if self.num_steps and self.geometry != "variance_preserving":
            raise ValueError(
                f"`num_steps` belongs to linear, cosine and sigmoid schedules; got {self.num_steps}"
                f" with {self.schedule!r}. Choose 0: it is a process in continuous time."
            )
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(
                "betas must rise within (0, 1); got `beta_first` "
                f"{self.beta_first} and `beta_last` {self.beta_last}. DDPM has 1e-4 and 0.02."
            )
        if not self.sigmoid_start < self.sigmoid_end:
            raise ValueError(
                "`sigmoid_start` must be below `sigmoid_end`; got "
                f"{self.sigmoid_start} and {self.sigmoid_end}. Choose -3 and 3."
            )
        for name in ("cosine_offset", "sigma_max", "shift"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                default = type(self).__dataclass_fields__[name].default
                raise ValueError(f"`{name}` must be positive; got {value}. Choose {default}.")
        if self.num_steps and self.log_snr_min is not None:
            raise ValueError(
                "`log_snr_min` stretches continuous time; got it with `num_steps` "
                f"{self.num_steps}. Leave one of them out."
            )
        if self.zero_terminal_snr and not self.num_steps:
            raise ValueError(
                "`zero_terminal_snr` rescales the betas of a discrete process; got `num_steps` 0. "
                "Give num_steps 1000; continuous cosine and flow end without signal as they are."
            )

    @property
    def geometry(self) -> Geometry:
        """Which sum of alpha and sigma is kept."""
        match self.schedule:
            case "edm":
                return "variance_exploding"
            case "flow":
                return "flow"
            case _:
                return "variance_preserving"

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        r"""Compute $\lambda(t) = \log(\alpha_t^2 / \sigma_t^2)$; infinite at t = 0.

        Where no signal is left it is -80 before the shift, not minus infinity, so that differences
        of two are never undefined.

        Args:
            t: Times in [0, 1].

        Reference: linear: Ho et al., arXiv:2006.11239, section 4, in continuous time Song et al.,
            arXiv:2011.13456, eq. 33; cosine: Nichol and Dhariwal, arXiv:2102.09672, eq. 17;
            sigmoid: Jabri et al., arXiv:2212.11972, appendix B; edm: Karras et al.,
            arXiv:2206.00364, table 1; flow: Liu et al., arXiv:2209.03003, eq. 1; shift: Hoogeboom
            et al., arXiv:2301.11093, eq. 4.
        """
        if self.num_steps:
            raw = self._table_log_snr(t)
        else:
            raw = self._continuous_log_snr(t * jnp.asarray(self._last_time, t.dtype))
            raw = jnp.maximum(raw, _NO_SIGNAL)
        return raw - 2 * math.log(self.shift)

    def time_at(self, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Find the time that has a log-SNR: the inverse of `log_snr`, clipped to [0, 1].

        Of a discrete process it may lie between two steps; `snap` takes it to one.
        """
        raw = log_snr + 2 * math.log(self.shift)
        if self.num_steps:
            t = self._table_time(raw)
        else:
            t = self._continuous_time(raw) / jnp.asarray(self._last_time, raw.dtype)
        return jnp.clip(t, 0, 1)

    def alpha_sigma(self, t: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        r"""Compute how much of the image and of the noise there is: $\alpha_t$ and $\sigma_t$."""
        return alpha_sigma(self.geometry, self.log_snr(t))

    def snap(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Take times to the nearest step of a discrete process, never to 0; others stay."""
        if not self.num_steps:
            return t
        return jnp.clip(jnp.round(t * self.num_steps), 1, self.num_steps) / self.num_steps

    def noise_level(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        r"""Tell a network how noisy its input is.

        The step index k - 1 of a discrete process (integers 0 ... T - 1); $\frac14 \log \sigma$ of
        edm (Karras et al., arXiv:2206.00364, table 1, $c_\mathrm{noise}$); else 1000 t.
        """
        if self.num_steps:
            return self._place(t) - 1
        return self.log_snr(t) / -8 if self.schedule == "edm" else 1000 * t

    @property
    def last_log_snr(self) -> float:
        """The log-SNR at t = 1, computed without JAX: configurations are read before it starts."""
        if self.log_snr_min is not None:
            return self.log_snr_min
        match self.schedule:
            case "edm":
                raw = -2 * math.log(self.sigma_max)
            case "linear" if not self.num_steps:
                raw = -math.log(math.expm1(sum(self._beta_rates) / 2))
            case _:
                raw = discrete_log_snr(self)[-1] if self.num_steps else -math.inf
        return float(raw) - 2 * math.log(self.shift)

    @functools.cached_property
    def _last_time(self) -> float:
        """Where on the schedule's own clock t = 1 is."""
        if self.log_snr_min is None:
            return 1.0
        # In float64 whatever asks first: one process, one clock.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            raw = jnp.asarray(self.log_snr_min + 2 * math.log(self.shift), jnp.float64)
            return float(jnp.clip(self._continuous_time(raw), 0, 1))

    def _continuous_log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        match self.schedule:
            case "linear":
                slow, fast = self._beta_rates
                return -_log_expm1(slow * t + (fast - slow) / 2 * t**2)
            case "cosine":
                # Of the ratio f(t) / f(0) of squared cosines. Signal and noise are products of
                # sines of angles from where they vanish: nothing cancels at either end.
                first, span = self._cosine_angles
                noise = jnp.sin(span * t) * jnp.sin(span * t + 2 * first)
                return 2 * _log_signal(jnp.sin(span * (1 - t))) - jnp.log(noise)
            case "sigmoid":
                # alpha^2 = (S(end) - S(here)) / (S(end) - S(start)), S logistic, and
                # S(a) - S(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)).
                half = (self.sigmoid_end - self.sigmoid_start) / 2
                signal = _log_signal(jnp.sinh(half * (1 - t)))
                return signal - jnp.log(jnp.sinh(half * t)) + self._sigmoid_offset
            case "edm":
                return -2 * jnp.log(self.sigma_max * t)
            case "flow":
                return 2 * (_log_signal(1 - t) - jnp.log(t))

    def _continuous_time(self, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        match self.schedule:
            case "linear":
                slow, fast = self._beta_rates
                integral = jax.nn.softplus(-log_snr)
                root = jnp.sqrt(slow**2 + 2 * (fast - slow) * integral)
                return 2 * integral / (slow + root)
            case "cosine":
                # alpha = cos(angle) / cos(first), and with sin(angle)^2 - sin(first)^2 =
                # sin(angle - first) sin(angle + first) the angle from the first one.
                first, span = self._cosine_angles
                cosine, sine = math.cos(first), math.sin(first)
                alpha, sigma = alpha_sigma("variance_preserving", log_snr)
                angle_cosine = alpha * cosine
                angle_sine = jnp.sqrt(sine**2 + (sigma * cosine) ** 2)
                difference = (sigma * cosine) ** 2 / (angle_sine * cosine + angle_cosine * sine)
                return jnp.arctan2(difference, angle_cosine * cosine + angle_sine * sine) / span
            case "sigmoid":
                half = (self.sigmoid_end - self.sigmoid_start) / 2
                ratio = jnp.exp(log_snr - self._sigmoid_offset)
                growth = 2 * math.sinh(half) / (ratio + math.exp(-half))
                return jnp.log1p(growth) / (2 * half)
            case "edm":
                return jnp.exp(-log_snr / 2) / self.sigma_max
            case "flow":
                return jax.nn.sigmoid(-log_snr / 2)

    @property
    def _cosine_angles(self) -> tuple[float, float]:
        """Where on the cosine t = 0 is, and how far from there to its zero, in radians."""
        span = math.pi / 2 / (1 + self.cosine_offset)
        return span * self.cosine_offset, span

    @property
    def _sigmoid_offset(self) -> float:
        """What the ends of the logistic curve add to a log-SNR: log cosh(start/2)/cosh(end/2)."""
        return math.log(math.cosh(self.sigmoid_start / 2) / math.cosh(self.sigmoid_end / 2))

    @property
    def _beta_rates(self) -> tuple[float, float]:
        """First and last beta a unit of time."""
        return self.beta_first * _DDPM_STEPS, self.beta_last * _DDPM_STEPS

    def _place(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Compute t T, exactly k where t is k / T as far as its dtype can say."""
        place = t * self.num_steps
        step = jnp.round(place)
        is_step = jnp.abs(place - step) <= 2 * jnp.finfo(t.dtype).eps * step
        # Rounded in value alone: a step has a slope too.
        return place + jax.lax.stop_gradient(jnp.where(is_step, step - place, 0))

    def _table_log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        table = jnp.asarray(discrete_log_snr(self), t.dtype)
        place = self._place(t)
        # Looked up, not searched for: this is compiled several times in every solver.
        step = jnp.clip(jnp.floor(place).astype(int), 1, self.num_steps - 1)
        slope = table[step] - table[step - 1]
        inside = table[step - 1] + slope * (place - step)
        # Before the first step sigma^2 grows as t does.
        return jnp.where(place < 1, table[0] - jnp.log(jnp.minimum(place, 1)), inside)

    def _table_time(self, log_snr: Float[Array, "*b"]) -> Float[Array, "*b"]:
        table = jnp.asarray(discrete_log_snr(self), log_snr.dtype)
        steps = jnp.arange(self.num_steps, 0, -1, dtype=log_snr.dtype)
        inside = jnp.interp(log_snr, table[::-1], steps)
        return jnp.where(log_snr > table[0], jnp.exp(table[0] - log_snr), inside) / self.num_steps


def alpha_sigma(
    geometry: Geometry, log_snr: Float[Array, "*b"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    r"""Split a log-SNR into $\alpha$ and $\sigma$ as the geometry says; infinities are fine."""
    match geometry:
        case "variance_preserving":
            alpha = jnp.exp(jax.nn.log_sigmoid(log_snr) / 2)
            return alpha, jnp.exp(jax.nn.log_sigmoid(-log_snr) / 2)
        case "variance_exploding":
            return jnp.ones_like(log_snr), jnp.exp(-log_snr / 2)
        case "flow":
            return jax.nn.sigmoid(log_snr / 2), jax.nn.sigmoid(-log_snr / 2)


def _log_signal(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Compute log(x), finite and with a finite slope where nothing is left."""
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def _log_expm1(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Compute log(exp(x) - 1) for x >= 0 without overflow."""
    return x + jnp.log(-jnp.expm1(-x))


@functools.cache
def discrete_betas(process: Process) -> Float64[np.ndarray, " steps"]:
    r"""Compute $\beta_1 \ldots \beta_T$ of a discrete process, in float64 on the host.

    Without `shift`, which acts on the log-SNR.

    Reference: linear: Ho et al., arXiv:2006.11239, section 4 (scaled by 1000 / T for other T);
        cosine: Nichol and Dhariwal, arXiv:2102.09672, eq. 17 with betas of at most 0.999; zero
        terminal SNR: Lin et al., arXiv:2305.08891, algorithm 1.

    Raises:
        ValueError: If the process is in continuous time.
    """
    steps = process.num_steps
    if not steps:
        raise ValueError("A process in continuous time has no betas; got `num_steps` 0.")
    if process.schedule == "linear":
        scale = _DDPM_STEPS / steps
        betas = np.linspace(scale * process.beta_first, scale * process.beta_last, steps)
    else:
        alpha_bars = _continuous_alpha_bars(process)
        betas = 1 - alpha_bars[1:] / alpha_bars[:-1]
    betas = np.minimum(betas, _MAX_BETA)
    if process.zero_terminal_snr:
        alphas = np.sqrt(np.cumprod(1 - betas))  # of x_0 in x_t
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        squares = np.concatenate([[1.0], alphas**2])
        betas = 1 - squares[1:] / squares[:-1]
    betas.setflags(write=False)  # one array for all who ask
    return betas


def _continuous_alpha_bars(process: Process) -> Float64[np.ndarray, " times"]:
    t = np.arange(process.num_steps + 1) / process.num_steps
    if process.schedule == "cosine":
        offset = process.cosine_offset
        squares = np.cos((t + offset) / (1 + offset) * (np.pi / 2)) ** 2
        return squares / squares[0]
    start, end = process.sigmoid_start, process.sigmoid_end
    curve = 1 / (1 + np.exp(-(start + (end - start) * t)))
    return (curve[-1] - curve) / (curve[-1] - curve[0])


@functools.cache
def discrete_log_snr(process: Process) -> Float64[np.ndarray, " steps"]:
    """Compute the log-SNR of every step of a discrete process, in float64 on the host.

    No signal at all is written as a log-SNR of -80, so that it can be interpolated.
    """
    betas = discrete_betas(process)
    # log(alpha_bar) and log(1 - alpha_bar) from the sum of logs: no cancellation at either end.
    with np.errstate(divide="ignore"):
        log_signal = np.cumsum(np.log1p(-betas))
        table = np.maximum(log_signal - np.log(-np.expm1(log_signal)), _NO_SIGNAL)
    table.setflags(write=False)
    return table
