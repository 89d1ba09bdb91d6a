"""Generation, token by token: prompts fill a cache in chunks, then one jitted loop draws tokens.

Shapes come from a few sizes, so that few programs are compiled: rows as they are, prompts in chunks
and caches in powers of two. Everything else (settings, seeds, stop ids, limits, the number of steps
of a call) is traced. B rows, P tokens of a prompt, S slots of the cache, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from genai_jax.decoding.sampling import SamplingConfig, Settings, sample_tokens, settings_of
from genai_jax.types import PyTree

Tokens = Sequence[int] | np.ndarray
Reason = Literal["stop", "length", "context"]

_CHUNK = 512  # tokens of a prompt at a time: bounds the attention logits of a long one
_FEWEST_SLOTS = 64
_STEPS = 64  # tokens of a row that one call may draw
_NO_TOKEN = -1


@runtime_checkable
class DecodingModel(Protocol):
    """What generation needs of a model; `config.max_length` bounds its context."""

    config: Any

    def init_cache(self, rows: int, slots: int) -> PyTree:
        """Make an empty cache for `rows` sequences of at most `slots` tokens."""

    def decode(self, tokens: Array, cache: PyTree, positions: Array) -> tuple[Array, PyTree]:
        """Compute the hidden states of new tokens, [B, T, D], and the cache with them in it."""

    def logits(self, hidden: Array) -> Array:
        """Compute the logits, [B, T, V]."""


class Generated(NamedTuple):
    """What became of a prompt.

    Attributes:
        tokens: What was drawn, the stop id included where there was one.
        log_probs: log p(token | all before) of the model itself: before temperature and filters.
        reason: Why it ended: a stop id (or the caller); `max_tokens`; the model's context is full.
        cut: How many of the prompt's oldest tokens were dropped, since it exceeds the context.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    reason: Reason
    cut: int


class Chunk(NamedTuple):
    """New tokens of every row, as a call of the loop gives them.

    Attributes:
        tokens: A row's new tokens; of ended rows none.
        log_probs: Their log-probabilities.
        ended: Which rows have drawn their last token.
    """

    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    ended: np.ndarray


class _Limits(NamedTuple):
    """What ends a row, and what it may draw.

    Attributes:
        length: Tokens of a row, prompt included.
        stop_ids: Tokens that end it, padded by -1.
        vocab_size: Ids from here on are never drawn.
    """

    length: Int[Any, " b"]
    stop_ids: Int[Any, " stops"]
    vocab_size: Int[Any, ""]


class _Progress(NamedTuple):
    """Sequences under way.

    Attributes:
        cache: Of all tokens but each row's last.
        token: The last token of a row.
        position: Its position.
        ended: Rows that draw no more.
    """

    cache: PyTree
    token: Int[Any, " b"]
    position: Int[Any, " b"]
    ended: Bool[Any, " b"]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _empty_cache(model: Any, rows: int, slots: int) -> PyTree:
    return model.init_cache(rows, slots)


@functools.partial(jax.jit, donate_argnums=1)
def _prefill(
    model: Any, cache: PyTree, tokens: Int[Array | np.ndarray, "b p"], start: Int[Any, ""]
) -> PyTree:
    """Put tokens into the slots start ... start + p - 1 of the cache."""
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    return model.decode(tokens, cache, positions)[1]


@functools.partial(jax.jit, donate_argnums=1)
def _advance(
    model: Any,
    progress: _Progress,
    settings: Settings,
    seeds: UInt32[Any, " b"],
    limits: _Limits,
    halt: Bool[Any, " b"],
    steps: Int[Any, ""],
) -> tuple[_Progress, Int[Array, "b n"], Float[Array, "b n"]]:
    """Draw up to `steps` tokens a row, until all rows have ended; `halt` ends rows before it."""
    rows = seeds.shape[0]
    keys = jax.vmap(jax.random.key)(seeds)
    tokens = jnp.full((rows, _STEPS), _NO_TOKEN, jnp.int32)
    log_probs = jnp.zeros((rows, _STEPS), jnp.float32)

    def unfinished(carry: Any) -> Bool[Array, ""]:
        step, progress, _, _ = carry
        return (step < steps) & ~progress.ended.all()

    def draw(carry: Any) -> Any:
        step, (cache, token, position, ended), tokens, log_probs = carry
        hidden, cache = model.decode(token[:, None], cache, position[:, None])
        logits = model.logits(hidden)[:, 0].astype(jnp.float32)
        position = position + ~ended
        # A token's noise is keyed by its row's seed and its own position: by nothing around it.
        row_keys = jax.vmap(jax.random.fold_in)(keys, position)
        known = jnp.arange(logits.shape[-1]) < limits.vocab_size
        drawn = sample_tokens(jnp.where(known, logits, -jnp.inf), row_keys, settings)
        token = jnp.where(ended, token, drawn.astype(jnp.int32))
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        tokens = tokens.at[:, step].set(jnp.where(ended, _NO_TOKEN, token))
        log_probs = log_probs.at[:, step].set(chosen - jax.nn.logsumexp(logits, axis=-1))
        ended |= (token[:, None] == limits.stop_ids).any(-1) | (position + 1 >= limits.length)
        return step + 1, _Progress(cache, token, position, ended), tokens, log_probs

    progress = progress._replace(ended=progress.ended | halt)
    carry = (jnp.int32(0), progress, tokens, log_probs)
    _, progress, tokens, log_probs = jax.lax.while_loop(unfinished, draw, carry)
    return progress, tokens, log_probs


class Generation:
    """Prompts under way: each `advance` draws the next tokens of all rows.

    A row's tokens depend on its prompt, its settings and its seed; not on the other rows, nor on
    how many tokens a call draws.

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
        max_tokens: int,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        """Read the prompts into a cache.

        Args:
            model: A language model; replicated over a mesh, it runs on one device of it.
            prompts: Token ids, at least one a prompt. One longer than the context loses its
                oldest tokens, so that `max_tokens`, or half of the context, can follow.
            sampling: How tokens are drawn: for all rows, or for each.
            max_tokens: Most tokens to draw for a row; fewer where the context is full before.
            seed: Of the noise, for each row; a single one gives row i `seed + i`.
            stop_ids: Tokens that end a row.
            vocab_size: Number of ids that may be drawn; None is the model's.

        Raises:
            ValueError: If a prompt is empty or holds an id that the model does not have.
        """
        rows, limit = len(prompts), model.config.max_length
        if max_tokens < 1:
            raise ValueError(f"`max_tokens` must be at least 1; got {max_tokens}.")
        known = model.config.vocab_size if vocab_size is None else vocab_size
        arrays = [_checked(prompt, known) for prompt in prompts]
        kept = [_newest(prompt, max_tokens, limit) for prompt in arrays]
        lengths = np.array([len(prompt) for prompt in kept], np.int32)
        self.cut = [len(whole) - len(part) for whole, part in zip(arrays, kept, strict=True)]
        self.ended = np.zeros(rows, bool)

        configs = [sampling] * rows if isinstance(sampling, SamplingConfig) else sampling
        seeds = range(seed, seed + rows) if isinstance(seed, int) else seed
        self._settings = settings_of(configs)
        self._seeds = np.array([number % 2**32 for number in seeds], np.uint32)
        if not len(configs) == len(seeds) == rows:
            raise ValueError(
                "`sampling` and `seed` must be one, or one for each prompt; got "
                f"{len(configs)} and {len(seeds)} for {rows} prompts."
            )
        stops = np.full(_power_of_two(len(stop_ids), least=4), _NO_TOKEN, np.int32)
        stops[: len(stop_ids)] = stop_ids
        totals = np.minimum(lengths + max_tokens, limit).astype(np.int32)
        self._limits = _Limits(totals, stops, np.int32(known))

        slots = min(limit, _power_of_two(int(totals.max()), least=_FEWEST_SLOTS))
        padded = np.zeros((rows, slots), np.int32)
        for row, prompt in zip(padded, kept, strict=True):
            row[: len(prompt)] = prompt
        self._model = _on_one_device(model)
        cache = _empty_cache(self._model, rows, slots)
        # Slots beyond a short prompt get what padding leaves; none is seen before it is rewritten.
        for start, width in _chunks(int(lengths.max()) - 1, slots):
            part = padded[:, start : start + width]
            cache = _prefill(self._model, cache, part, np.int32(start))
        last = padded[np.arange(rows), lengths - 1]
        self._progress = _Progress(cache, last, lengths - 1, self.ended)

    def advance(self, steps: int = _STEPS, *, halt: np.ndarray | None = None) -> Chunk:
        """Draw the next tokens of the rows that have not ended.

        Args:
            steps: How many for each, at most; more than 64 are 64.
            halt: Rows to end before that, for reasons of the caller's own.
        """
        halt = np.zeros_like(self.ended) if halt is None else halt
        self._progress, tokens, log_probs = _advance(
            self._model,
            self._progress,
            self._settings,
            self._seeds,
            self._limits,
            halt,
            np.int32(min(steps, _STEPS)),
        )
        tokens, log_probs, self.ended = jax.device_get((tokens, log_probs, self._progress.ended))
        drawn = tokens != _NO_TOKEN
        return Chunk(
            [row[mask] for row, mask in zip(tokens, drawn, strict=True)],
            [row[mask] for row, mask in zip(log_probs, drawn, strict=True)],
            self.ended,
        )


def generate(
    model: DecodingModel,
    prompts: Sequence[Tokens],
    sampling: SamplingConfig | Sequence[SamplingConfig],
    *,
    max_tokens: int,
    seed: int | Sequence[int] = 0,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
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
        results.append(Generated(tokens, log_probs, _reason(tokens, max_tokens, stop_ids), cut))
    return results


def _reason(tokens: np.ndarray, max_tokens: int, stop_ids: Sequence[int]) -> Reason:
    if len(tokens) and tokens[-1] in stop_ids:
        return "stop"
    return "length" if len(tokens) == max_tokens else "context"


def _checked(prompt: Tokens, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(prompt, np.int32)
    if not tokens.size:
        raise ValueError(
            "a prompt must hold at least one token; got none. Begin with the end-of-text id, as "
            "documents do."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"a prompt's ids must be from 0 to {vocab_size - 1}; got {tokens.min()} to "
            f"{tokens.max()}. Encode it with the tokenizer that the model was trained with."
        )
    return tokens


def _newest(prompt: np.ndarray, max_tokens: int, limit: int) -> np.ndarray:
    """Drop the oldest tokens of a prompt that leaves no room to draw one."""
    if len(prompt) < limit:
        return prompt
    return prompt[-max(1, limit - min(max_tokens, limit // 2)) :]


def _chunks(length: int, slots: int) -> Iterator[tuple[int, int]]:
    """Cut a prompt of `length` tokens into (start, width) of a few widths, padded at its end.

    A chunk that would leave the cache begins earlier: what it computes again is the same.
    """
    for start in range(0, length, _CHUNK):
        width = min(_CHUNK, slots, _power_of_two(length - start, least=16))
        yield min(start, slots - width), width


def _power_of_two(number: int, *, least: int) -> int:
    return max(least, 1 << (number - 1).bit_length()) if number else least


def _on_one_device(model: Any) -> Any:
    """Take one copy of a model that every device holds whole: others would compute the same.

    A model that is cut over devices stays where it is.
    """
    leaves = jax.tree.leaves(model)
    if all(isinstance(leaf, jax.Array) and leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), model)
    return model
