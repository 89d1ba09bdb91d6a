"""Which token comes next: settings of a row, and one draw as a pure function of logits.

Every setting is an array with one value a row, so that rows of one batch may differ, and changing a
value compiles nothing. B rows, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from genai_jax.decoding.adjustments import Adjustments
from genai_jax.decoding.filters import Filters, kept_tokens

_Numbers = np.ndarray | Array

_LARGEST = 1e6  # far beyond any logit, and still exact enough beside them
MOST_FORCED = 64
"""Most tokens that a row can be made to begin with."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the tokens of a row are drawn, in the order of Hugging Face's `generate`.

    First the bias, then the penalties, the least length and what is forbidden or forced; then the
    temperature; then the filters, each on what the ones before have left.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token, 1 is the model's own
            distribution.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose probabilities sum to p; 1 keeps all.
        min_p: Keep tokens at least this many times as likely as the likeliest; 0 keeps all.
        typical_p: Keep the fewest tokens whose surprise is nearest to the expected one and whose
            probabilities sum to p; 1 keeps all.
        repetition_penalty: Divides positive logits, and multiplies others, of tokens of the prompt
            and of the text so far; 1 changes nothing, above 1 discourages.
        presence_penalty: Is subtracted from the logits of tokens drawn so far.
        frequency_penalty: Is subtracted as often as they were drawn.
        logit_bias: Is added to the logits of some ids; -inf forbids one.
        forbidden: Ids that are never drawn.
        forced: Ids that the text begins with, at most 64.
        min_tokens: Until so many are drawn, no id ends the text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    forbidden: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.temperature <= _LARGEST:
            raise ValueError(
                f"`temperature` must be from 0 to {_LARGEST:.0e}; got {self.temperature}. 0 takes "
                "the likeliest token, 1 is the model's own distribution."
            )
        for name in ("top_k", "min_tokens"):
            if not 0 <= getattr(self, name) < 1 << 31:
                raise ValueError(
                    f"`{name}` must be at least 0; got {getattr(self, name)}. 0 does without."
                )
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be in (0, 1]; got {getattr(self, name)}. 1 keeps all tokens."
                )
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"`min_p` must be in [0, 1]; got {self.min_p}. 0 keeps all tokens.")
        if not 1 / _LARGEST <= self.repetition_penalty <= _LARGEST:
            raise ValueError(
                f"`repetition_penalty` must be from {1 / _LARGEST:.0e} to {_LARGEST:.0e}; got "
                f"{self.repetition_penalty}. 1 changes nothing."
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) <= _LARGEST:
                raise ValueError(
                    f"`{name}` must be a number of at most {_LARGEST:.0e}; got "
                    f"{getattr(self, name)}. 0 changes nothing."
                )
        self._check_ids()

    def _check_ids(self) -> None:
        for token, bias in self.logit_bias.items():
            if not (abs(bias) <= _LARGEST or bias == -math.inf):
                raise ValueError(
                    f"`logit_bias` must be numbers of at most {_LARGEST:.0e}, or -inf; got {bias} "
                    f"for id {token}. To have a token for certain, give it in `forced`."
                )
        wrong = [token for token in self.ids if not isinstance(token, int | np.integer)]
        if wrong:
            raise ValueError(f"ids must be whole numbers; got {wrong[:5]}.")
        if len(self.forced) > MOST_FORCED:
            raise ValueError(
                f"`forced` must have at most {MOST_FORCED} ids; got {len(self.forced)}. Put what "
                "the text begins with into the prompt."
            )
        both = set(self.forced) & set(self.forbidden)
        if both:
            raise ValueError(f"ids must not be both `forced` and `forbidden`; got {sorted(both)}.")

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that it names."""
        return (*self.logit_bias, *self.forbidden, *self.forced)

    @property
    def excluded(self) -> set[int]:
        """Ids that can never be drawn."""
        unlikely = {token for token, bias in self.logit_bias.items() if bias == -math.inf}
        return unlikely | set(self.forbidden)


class Settings(NamedTuple):
    """A `SamplingConfig` for every row, as arrays."""

    temperature: Float[_Numbers, " b"]
    filters: Filters
    adjustments: Adjustments


def settings_of(configs: Sequence[SamplingConfig], vocab_size: int) -> Settings:
    """Put the configurations of rows into arrays.

    Args:
        configs: Of the rows.
        vocab_size: V, of the model's logits.

    Raises:
        ValueError: If one names an id that is not below V.
    """
    bias = np.zeros((len(configs), vocab_size), np.float32)
    forced = np.full((len(configs), MOST_FORCED), -1, np.int32)
    for row, config in enumerate(configs):
        wrong = [token for token in config.ids if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"ids must be from 0 to {vocab_size - 1}; got {wrong[:5]}.")
        for token, value in config.logit_bias.items():
            bias[row, token] = value
        bias[row, list(config.forbidden)] = -np.inf
        forced[row, : len(config.forced)] = config.forced

    def each(name: str, dtype: type = np.float32) -> np.ndarray:
        return np.array([getattr(config, name) for config in configs], dtype)

    return Settings(
        each("temperature"),
        Filters(each("top_k", np.int32), each("top_p"), each("min_p"), each("typical_p")),
        Adjustments(
            bias,
            each("repetition_penalty"),
            each("presence_penalty"),
            each("frequency_penalty"),
            each("min_tokens", np.int32),
            forced,
        ),
    )


class Drawn(NamedTuple):
    """A token a row.

    Attributes:
        tokens: Which.
        log_probs: Logarithm of the probability with which it was drawn, that is, after temperature
            and filters; 0 where the likeliest is always taken.
    """

    tokens: Int[Array, " b"]
    log_probs: Float[Array, " b"]


def draw_tokens(
    logits: Float[Array, "b v"],
    keys: Key[Array, " b"],
    temperature: Float[_Numbers, " b"],
    filters: Filters,
) -> Drawn:
    r"""Draw a token a row from $\mathrm{softmax}(l / \tau)$ over the tokens that the filters keep.

    By inversion: the first token whose cumulative probability exceeds a uniform number. That takes
    one number a row, from the row's own key: other rows change nothing, and a number for each of
    the V tokens would cost more than all the rest.

    Args:
        logits: Unnormalised log-probabilities l; -inf is never drawn.
        keys: One a row.
        temperature: $\tau$ of the rows.
        filters: Of the rows.
    """
    heat = temperature[:, None]
    wide = logits.astype(jnp.float32)
    # Below the highest, so that no temperature, however small, makes it infinite.
    scaled = (wide - wide.max(-1, keepdims=True)) / jnp.where(heat > 0, heat, 1)
    kept = jnp.where(kept_tokens(scaled, filters), scaled, -jnp.inf)
    log_p = jax.nn.log_softmax(kept, axis=-1)
    probabilities = jnp.exp(log_p)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)[:, None]
    # Sums of many numbers are rounded, and may rise or fall where nothing is added: a token that
    # cannot be drawn must not be found there, nor behind the last one that can.
    possible = probabilities > 0
    exceeds = possible & (cumulative > uniform * cumulative[:, -1:])
    last = probabilities.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    inverted = jnp.where(exceeds.any(-1), jnp.argmax(exceeds, axis=-1), last)
    tokens = jnp.where(heat[:, 0] > 0, inverted, jnp.argmax(scaled, axis=-1))
    log_probs = jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
    return Drawn(tokens, jnp.where(heat[:, 0] > 0, log_probs, 0.0))
