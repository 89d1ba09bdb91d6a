"""Generation, token by token: prompts fill a cache in chunks, then one jitted loop draws tokens.

Two programs are compiled for a number of rows and a length of the cache: one reads a chunk of the
prompts, one draws tokens. Everything else (settings, seeds, stop ids, limits, the number of steps
of a call) is traced. B rows, P tokens of a prompt, S slots of the cache, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from genai_jax.decoding.adjustments import (
    Seen,
    adjust_logits,
    can_be_drawn_from,
    count_drawn,
)
from genai_jax.decoding.requests import (
    NO_TOKEN,
    Tokens,
    check_request,
    checked,
    for_each,
    newest,
    seen_in,
    stop_table,
)
from genai_jax.decoding.sampling import SamplingConfig, Settings, draw_tokens, settings_of
from genai_jax.types import PyTree

Reason = Literal["stop", "length", "context", "broken"]

# Tokens of a prompt at a time. Always as many, at places that do not depend on the prompts, so that
# the arithmetic of a token is the same whatever stands beside it.
_CHUNK = 64
_STEPS = 64  # tokens of a row that one call may draw


@runtime_checkable
class DecodingModel(Protocol):
    """What generation needs of a model; `config.max_length` bounds its context."""

    config: Any

    def init_cache(self, rows: int, slots: int) -> PyTree:
        """Make an empty cache for `rows` sequences of at most `slots` tokens."""

    def decode(
        self, tokens: Array, cache: PyTree, positions: Array, lengths: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Compute the hidden states of new tokens, [B, T, D], and the cache with them in it.

        Tokens at `lengths` of their row, and behind, are padding.
        """

    def logits(self, hidden: Array) -> Array:
        """Compute the logits, [B, T, V]."""


class Generated(NamedTuple):
    """What became of a prompt.

    Attributes:
        tokens: What was drawn, the stop id included where there was one.
        log_probs: log p(token | all before) of the model itself: before everything else.
        drawn_log_probs: Logarithm of the probability with which it was drawn: after penalties,
            temperature and filters. The difference of the two is what a policy gradient needs to
            know of the filters.
        reason: Why it ended: a stop id (or the caller); `max_tokens`; the model's context is full;
            the model's logits are no numbers, or leave nothing to draw.
        cut: How many of the prompt's oldest tokens were dropped, since it exceeds the context.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    reason: Reason
    cut: int


class Chunk(NamedTuple):
    """New tokens of every row, as a call of the loop gives them.

    Attributes:
        tokens: A row's new tokens; of ended rows none.
        log_probs: Their log-probabilities.
        drawn_log_probs: Those with which they were drawn.
        ended: Which rows have drawn their last token.
    """

    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    drawn_log_probs: list[np.ndarray]
    ended: np.ndarray


class _Limits(NamedTuple):
    """What ends a row, and what it may draw.

    Attributes:
        length: Tokens of a row, prompt included.
        stop_ids: Tokens that end it, padded by -1.
        vocab_size: Ids from here on are never drawn.
    """

    length: Int[Any, " b"]
    stop_ids: Int[Any, "b s"]
    vocab_size: Int[Any, ""]


class _Progress(NamedTuple):
    """Sequences under way.

    Attributes:
        cache: Of all tokens but each row's last.
        token: The last token of a row.
        position: Its position.
        seen: What stands in the rows.
        ended: Rows that draw no more.
        broken: Rows that ended since there was nothing to draw.
    """

    cache: PyTree
    token: Int[Any, " b"]
    position: Int[Any, " b"]
    seen: Seen
    ended: Bool[Any, " b"]
    broken: Bool[Any, " b"]


class _Written(NamedTuple):
    """What one call draws, by step; -1 where a row has ended.

    Attributes:
        tokens: The tokens.
        log_probs: Of the model.
        drawn_log_probs: With which they were drawn.
    """

    tokens: Int[Array, "b n"]
    log_probs: Float[Array, "b n"]
    drawn_log_probs: Float[Array, "b n"]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _empty_cache(model: Any, rows: int, slots: int) -> PyTree:
    return model.init_cache(rows, slots)


@functools.partial(jax.jit, donate_argnums=1)
def _prefill(
    model: Any,
    cache: PyTree,
    tokens: Int[Array | np.ndarray, "b p"],
    start: Int[Any, ""],
    lengths: Int[Any, " b"],
) -> PyTree:
    """Put tokens at the positions start ... start + p - 1 into the cache."""
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    return model.decode(tokens, cache, positions, lengths)[1]


@functools.partial(jax.jit, donate_argnums=1)
def _advance(
    model: Any,
    progress: _Progress,
    settings: Settings,
    seeds: UInt32[Any, " b"],
    limits: _Limits,
    halt: Bool[Any, " b"],
    steps: Int[Any, ""],
) -> tuple[_Progress, _Written]:
    """Draw up to `steps` tokens a row, until all rows have ended; `halt` ends rows before it."""
    rows = seeds.shape[0]
    keys = jax.vmap(jax.random.key)(seeds)
    nothing = jnp.zeros((rows, _STEPS), jnp.float32)
    written = _Written(jnp.full((rows, _STEPS), NO_TOKEN, jnp.int32), nothing, nothing)

    def unfinished(carry: Any) -> Bool[Array, ""]:
        step, progress, _ = carry
        return (step < steps) & ~progress.ended.all()

    def draw(carry: Any) -> Any:
        step, (cache, token, position, seen, ended, broken), written = carry
        hidden, cache = model.decode(token[:, None], cache, position[:, None])
        logits = model.logits(hidden)[:, 0].astype(jnp.float32)
        known = jnp.arange(logits.shape[-1]) < limits.vocab_size
        adjusted = adjust_logits(
            jnp.where(known, logits, -jnp.inf), settings.adjustments, seen, limits.stop_ids
        )
        broken |= ~ended & ~can_be_drawn_from(adjusted)
        ended |= broken
        position = position + ~ended
        # A token's noise is keyed by its row's seed and its own position: by nothing around it.
        row_keys = jax.vmap(jax.random.fold_in)(keys, position)
        drawn = draw_tokens(adjusted, row_keys, settings.temperature, settings.filters)
        token = jnp.where(ended, token, drawn.tokens.astype(jnp.int32))
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        written = _Written(
            written.tokens.at[:, step].set(jnp.where(ended, NO_TOKEN, token)),
            written.log_probs.at[:, step].set(chosen - jax.nn.logsumexp(logits, axis=-1)),
            written.drawn_log_probs.at[:, step].set(drawn.log_probs),
        )
        seen = count_drawn(seen, token, ~ended)
        stops = (token[:, None] == limits.stop_ids).any(-1)
        ended |= stops & (seen.length >= settings.adjustments.min_tokens)
        ended |= position + 1 >= limits.length
        return step + 1, _Progress(cache, token, position, seen, ended, broken), written

    progress = progress._replace(ended=progress.ended | halt)
    _, progress, written = jax.lax.while_loop(unfinished, draw, (jnp.int32(0), progress, written))
    return progress, written


class Generation:
    """Prompts under way: each `advance` draws the next tokens of all rows.

    A row's tokens depend on its prompt, its settings and its seed; not on the other rows, nor on
    how many tokens a call draws. Where `rows` and `context` are the same, they are the same to the
    last bit of their probabilities: products of one row and of several may differ in it.

    Attributes:
        cut: Of each prompt, how many of the oldest tokens were dropped to fit the context.
        ended: Which rows have drawn their last token.
    """

    def __init__(
        self,
        model: DecodingModel,
        prompts: Sequence[Tokens],
        sampling: SamplingConfig | Sequence[SamplingConfig],
        *,
        max_tokens: int | Sequence[int],
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
        vocab_size: int | None = None,
        rows: int = 2,
        context: int = 0,
    ) -> None:
        """Read the prompts into a cache.

        Args:
            model: A language model; replicated over a mesh, it runs on one device of it.
            prompts: Token ids, at least one a prompt. One longer than the context loses its
                oldest tokens, so that `max_tokens`, or half of the context, can follow.
            sampling: How tokens are drawn: for all rows, or for each.
            max_tokens: Most tokens to draw, for all rows or for each; fewer where the context is
                full before.
            seed: Of the noise, for each row; a single one gives row i `seed + i`.
            stop_ids: Tokens that end a row, at most 64: for all rows, or lists for each.
            vocab_size: Number of ids that may be drawn; None is the model's.
            rows: Rows that are computed, at least, if there are fewer prompts.
            context: Tokens that the cache is made for, at least; a power of two is.

        Raises:
            ValueError: If a prompt is empty or holds an id that the model does not have, or what is
                asked for contradicts itself.
        """
        count, limit = len(prompts), model.config.max_length
        known = model.config.vocab_size if vocab_size is None else vocab_size
        configs = for_each("sampling", sampling, count, SamplingConfig)
        most = for_each("max_tokens", max_tokens, count, int)
        seeds = range(seed, seed + count) if isinstance(seed, int) else seed
        seeds = [number % 2**32 for number in for_each("seed", seeds, count, int)]
        stops = stop_table(stop_ids, count)
        for config, number in zip(configs, most, strict=True):
            check_request(config, number, known)
        arrays = [checked(prompt, known) for prompt in prompts]
        kept = [newest(prompt, n, limit) for prompt, n in zip(arrays, most, strict=True)]
        self.cut = [len(whole) - len(part) for whole, part in zip(arrays, kept, strict=True)]
        self.ended = np.zeros(count, bool)

        # Rows that nobody asked for have ended before they begin.
        idle = max(0, rows - count)
        configs, kept = configs + [SamplingConfig()] * idle, kept + [np.zeros(1, np.int32)] * idle
        self._most = np.array(most + [1] * idle, np.int32)
        self._seeds = np.array(seeds + [0] * idle, np.uint32)
        self._settings = settings_of(configs, model.config.vocab_size)
        stops = np.pad(stops, ((0, idle), (0, 0)), constant_values=NO_TOKEN)
        lengths = np.array([len(prompt) for prompt in kept], np.int32)
        totals = np.minimum(lengths + self._most, limit).astype(np.int32)
        self._limits = _Limits(totals, stops, np.int32(known))

        slots = max(_CHUNK, 1 << (max(context, int(totals.max())) - 1).bit_length())
        padded = np.zeros((len(kept), slots), np.int32)
        for row, prompt in zip(padded, kept, strict=True):
            row[: len(prompt)] = prompt
        self._model = _on_one_device(model)
        cache = _empty_cache(self._model, len(kept), slots)
        # The last token of a prompt is the first that the loop reads.
        for start in range(0, int(lengths.max()) - 1, _CHUNK):
            part = padded[:, start : start + _CHUNK]
            cache = _prefill(self._model, cache, part, np.int32(start), lengths - 1)
        last = padded[np.arange(len(kept)), lengths - 1]
        seen = seen_in(kept, model.config.vocab_size)
        ended = np.arange(len(kept)) >= count
        self._progress = _Progress(cache, last, lengths - 1, seen, ended, np.zeros_like(ended))

    def advance(self, steps: int = _STEPS, *, halt: np.ndarray | None = None) -> Chunk:
        """Draw the next tokens of the rows that have not ended.

        Args:
            steps: How many for each, at most; more than 64 are 64.
            halt: Rows to end before that, for reasons of the caller's own.
        """
        count = len(self.ended)
        halt = np.zeros(count, bool) if halt is None else halt
        self._progress, written = _advance(
            self._model,
            self._progress,
            self._settings,
            self._seeds,
            self._limits,
            np.pad(halt, (0, len(self._seeds) - count)),
            np.int32(min(steps, _STEPS)),
        )
        found = jax.device_get((*written, self._progress.ended))
        *written, self.ended = (x[:count] for x in found)
        drawn = written[0] != NO_TOKEN
        parts = ([row[mask] for row, mask in zip(x, drawn, strict=True)] for x in written)
        tokens, log_probs, drawn_log_probs = parts
        return Chunk(tokens, log_probs, drawn_log_probs, self.ended)

    def reason(self, row: int, tokens: np.ndarray) -> Reason:
        """Say why a row has ended that drew these tokens in all."""
        if bool(self._progress.broken[row]):
            return "broken"
        if len(tokens) and tokens[-1] in self._limits.stop_ids[row]:
            return "stop"
        return "length" if len(tokens) == self._most[row] else "context"


def generate(
    model: DecodingModel,
    prompts: Sequence[Tokens],
    sampling: SamplingConfig | Sequence[SamplingConfig],
    *,
    max_tokens: int | Sequence[int],
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    vocab_size: int | None = None,
    rows: int = 2,
    context: int = 0,
    check: Callable[[], None] | None = None,
) -> list[Generated]:
    """Draw what follows each prompt, all of it.

    Args:
        model: As `Generation` takes it, like the other arguments.
        prompts: Token ids.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to draw for a row.
        seed: Of the noise.
        stop_ids: Tokens that end a row.
        vocab_size: Number of ids that may be drawn.
        rows: Rows that are computed, at least.
        context: Tokens that the cache is made for, at least.
        check: Called every few tokens; may raise, to give up.
    """
    generation = Generation(
        model,
        prompts,
        sampling,
        max_tokens=max_tokens,
        seed=seed,
        stop_ids=stop_ids,
        vocab_size=vocab_size,
        rows=rows,
        context=context,
    )
    chunks: list[Chunk] = []
    while not generation.ended.all():
        if check is not None:
            check()
        chunks.append(generation.advance())
    results = []
    for row, cut in enumerate(generation.cut):
        tokens = np.concatenate([chunk.tokens[row] for chunk in chunks])
        log_probs = np.concatenate([chunk.log_probs[row] for chunk in chunks])
        drawn_log_probs = np.concatenate([chunk.drawn_log_probs[row] for chunk in chunks])
        reason = generation.reason(row, tokens)
        results.append(Generated(tokens, log_probs, drawn_log_probs, reason, cut))
    return results


def _on_one_device(model: Any) -> Any:
    """Take one copy of a model that every device holds whole: others would compute the same.

    A model that is cut over devices stays where it is.
    """
    leaves = jax.tree.leaves(model)
    if all(isinstance(leaf, jax.Array) and leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), model)
    return model
