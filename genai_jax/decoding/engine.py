"""Many requests over a few rows: each takes a row when one is free, and leaves it when it ends."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genai_jax.decoding.loop import (
    STEPS,
    DecodingModel,
    Written,
    advance,
    empty_cache,
    on_one_device,
    place_row,
    prefill,
)
from genai_jax.decoding.prefixes import Prefixes
from genai_jax.decoding.requests import (
    MOST_ALTERNATIVES,
    Request,
    check_request,
    kept_prompt,
    rolled,
)
from genai_jax.decoding.rows import Rows, empty_rows, make_row
from genai_jax.decoding.tables import Constraint, fit_together, make_tables, walk
from genai_jax.types import PyTree

Reason = Literal["stop", "length", "context", "truncated", "rolled", "cancelled", "broken"]


class Piece(NamedTuple):
    """Tokens of a request, in the order in which they were drawn.

    Attributes:
        tokens: The tokens, the stop id included where there was one.
        log_probs: log p(token | all before) of the model itself: before everything else.
        drawn_log_probs: Logarithm of the probability with which it was drawn: after penalties,
            constraint, temperature and filters. The difference of the two is what a policy gradient
            needs to know of the filters.
        likeliest: The likeliest ids in the place of each, as many as were asked for.
        their_log_probs: Of the model.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    likeliest: np.ndarray
    their_log_probs: np.ndarray


class Generated(NamedTuple):
    """What became of a request.

    Attributes:
        tokens: As in `Piece`, as are the next four.
        log_probs: Of the model.
        drawn_log_probs: With which they were drawn.
        likeliest: The likeliest ids.
        their_log_probs: Of the model.
        reason: Why it ended. `stop`: a stop id, or what nothing can follow in a constrained text.
            `length`: `max_tokens`. `context`: the model's context is full. `truncated`, `rolled`:
            one of these two, after tokens were dropped since they exceed the context. `cancelled`:
            the caller ended it. `broken`: the model's logits are no numbers, or leave nothing to
            draw.
        cut: How many tokens were dropped.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    likeliest: np.ndarray
    their_log_probs: np.ndarray
    reason: Reason
    cut: int


@dataclasses.dataclass(eq=False)
class _Task:
    """A request under way.

    Attributes:
        request: What is asked for.
        on_piece: Is told what comes.
        pieces: What has come.
        kept: The tokens in its row when it took it.
        since: How many tokens were drawn before that.
    """

    request: Request
    on_piece: Callable[[Piece], None]
    pieces: list[Piece]
    kept: np.ndarray
    since: int = 0

    def drawn(self) -> np.ndarray:
        """All tokens that were drawn."""
        return np.concatenate([np.zeros(0, np.int32), *(piece.tokens for piece in self.pieces)])


class Engine:
    """Draws what follows prompts, a few rows at a time.

    A request's tokens depend on its prompt, settings and seed, on the model and on the engine's own
    numbers (rows, context, width, chunk); to the last bit of their probabilities. They depend
    neither on other requests, nor on the row, nor on how many tokens a step draws.
    """

    def __init__(
        self,
        model: DecodingModel,
        *,
        rows: int = 2,
        context: int = 0,
        vocab_size: int | None = None,
        width: int = 1,
        chunk: int = 64,
        prefixes: int = 0,
        quantized: bool = False,
    ) -> None:
        """Make room.

        Args:
            model: A language model; replicated over a mesh, it runs on one device of it.
            rows: Requests under way at a time; at least 2, since products of one row differ in
                their last bits from those of several.
            context: Most tokens of a row, prompt included; 0 is the model's own.
            vocab_size: Number of ids that may be drawn; None is the model's.
            width: Tokens of a row that are read at a time. Above 1, what may follow is looked up in
                the text so far, and read in the same step.
            chunk: Tokens of a prompt that are read at a time, a power of two: always as many, at
                places that do not depend on the prompt.
            prefixes: Caches of prompts to keep; a prompt that begins like one of them is read from
                where it differs.
            quantized: Whether keys and values are kept as 8-bit integers.

        Raises:
            ValueError: If a number is out of its range.
        """
        most = model.config.max_length
        ranges = {
            "rows": (rows, 2, 1 << 16),
            "context": (context or most, 2, most),
            "width": (width, 1, 16),
            "chunk": (chunk, 1, 1 << 16),
            "prefixes": (prefixes, 0, 1 << 16),
            "vocab_size": (vocab_size or model.config.vocab_size, 1, model.config.vocab_size),
        }
        for name, (value, lowest, highest) in ranges.items():
            if not lowest <= value <= highest:
                raise ValueError(f"`{name}` must be from {lowest} to {highest}; got {value}.")
        if chunk & (chunk - 1):
            raise ValueError(f"`chunk` must be a power of two; got {chunk}.")
        self.context = context or most
        self._vocab_size = model.config.vocab_size
        self._known = np.int32(vocab_size or self._vocab_size)
        self._model = on_one_device(model)
        self._width, self._chunk = width, chunk
        # Prompts are padded to whole chunks; what is guessed may lie behind the last token.
        self._slots = -(-self.context // chunk) * chunk + width - 1
        self._quantized = quantized
        self._prefixes = Prefixes(prefixes, chunk, whole=self._forgets())
        self._tasks: list[_Task | None] = [None] * rows
        self._tickets: dict[int, _Task] = {}
        self._queue: collections.deque[_Task] = collections.deque()
        self._numbers = itertools.count()
        self._tables = jax.device_put(make_tables([None] * rows, self._vocab_size))
        self._rows: Rows | None = None

    def _cache(self, rows: int, more: int = 0) -> PyTree:
        return empty_cache(self._model, rows, self._slots + more, self._width, self._quantized)

    def _forgets(self) -> bool:
        """Whether some layers keep fewer tokens than a row has: they would have no more slots."""
        shapes = (jax.tree.leaves(jax.eval_shape(lambda n=n: self._cache(1, n))) for n in (0, 1))
        return any(a.shape == b.shape for a, b in zip(*shapes, strict=True))

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._tickets)

    def submit(
        self, request: Request, on_piece: Callable[[Piece], None] = lambda piece: None
    ) -> int:
        """Take a request in.

        Args:
            request: What is asked for.
            on_piece: Is called with its new tokens after every step; may call `cancel`.

        Returns:
            The ticket by which `step` names it.

        Raises:
            ContextError: If it exceeds the context, and should be refused then.
            ValueError: If it contradicts itself.
        """
        check_request(request, int(self._known), self.context)
        task = _Task(request, on_piece, [], kept_prompt(request, self.context))
        ticket = next(self._numbers)
        self._tickets[ticket] = task
        self._queue.append(task)
        return ticket

    def cancel(self, ticket: int) -> Generated:
        """End a request, and give its row to another one.

        Raises:
            KeyError: If it has ended, or never was.
        """
        task = self._tickets[ticket]
        if task in self._queue:
            self._queue.remove(task)
        return self._end(task, "cancelled")

    def step(self, steps: int = STEPS) -> dict[int, Generated]:
        """Draw the next tokens of all requests that have a row.

        Args:
            steps: How many for each, about; more than 64 are 64. Rows that have ended wait for
                the others, unless a request waits for a row.

        Returns:
            The requests that have ended, by their tickets.
        """
        self._fill_rows()
        if self._rows is None:
            return {}
        halt = np.array([task is None for task in self._tasks])
        self._rows, written = advance(
            self._model,
            self._rows,
            self._tables,
            self._known,
            halt,
            np.int32(steps),
            np.bool_(not self._queue),
            width=self._width,
        )
        found: tuple[Written, np.ndarray, np.ndarray] = jax.device_get(
            (written, self._rows.ended, self._rows.broken)
        )
        ended = {}
        tickets = {id(task): ticket for ticket, task in self._tickets.items()}
        for place, task in enumerate(list(self._tasks)):
            if task is None:
                continue
            piece = _piece(found[0], place, task.request.alternatives)
            task.pieces.append(piece)
            task.on_piece(piece)
            if found[1][place] and tickets[id(task)] in self._tickets:
                reason = self._reason(task, bool(found[2][place]))
                if reason == "context" and task.request.overflow == "roll":
                    self._roll(place, task)
                else:
                    ended[tickets[id(task)]] = self._end(task, reason)
        return ended

    def run(
        self, requests: Sequence[Request], check: Callable[[], None] = lambda: None
    ) -> list[Generated]:
        """Draw what follows all of them.

        Args:
            requests: What is asked for.
            check: Is called before every step; may raise, to give up.

        Raises:
            ValueError: As `submit`, before anything is drawn.
        """
        for request in requests:
            check_request(request, int(self._known), self.context)
        tickets = [self.submit(request) for request in requests]
        results: dict[int, Generated] = {}
        try:
            while not results.keys() >= set(tickets):
                check()
                results |= self.step()
        finally:
            for ticket in set(tickets) & self._tickets.keys():
                self.cancel(ticket)
        return [results[ticket] for ticket in tickets]

    def _fill_rows(self) -> None:
        """Give free rows to those who wait."""
        for place, task in enumerate(self._tasks):
            if task is None and self._queue and self._fits(self._queue[0]):
                self._take_row(place, self._queue.popleft())

    def _fits(self, task: _Task) -> bool:
        """Whether the automata of all rows have room for one more."""
        return fit_together([_constraint(other) for other in (*self._tasks, task)])

    def _take_row(self, place: int, task: _Task) -> None:
        """Read what stands before the next token, and put it into a row."""
        self._tasks[place] = task
        row = make_row(
            task.request,
            task.kept,
            task.drawn(),
            self._read(task.kept[:-1]),
            context=self.context,
            slots=self._slots if self._width > 1 else 0,
            vocab_size=self._vocab_size,
        )
        if self._rows is None:
            count = len(self._tasks)
            self._rows = empty_rows(row, self._cache(count), count)
        self._rows = place_row(self._rows, row, np.int32(place))
        if task.request.automaton is not None:
            constraints = [_constraint(other) for other in self._tasks]
            self._tables = jax.device_put(make_tables(constraints, self._vocab_size))

    def _read(self, tokens: np.ndarray) -> PyTree:
        """Make a cache of one row with these tokens in it."""
        done, cache = self._prefixes.longest(tokens)
        if done == len(tokens) and cache is not None:
            return cache
        # Reading overwrites a cache; one that is kept must stay as it is.
        cache = self._cache(1) if cache is None else jax.tree.map(jnp.copy, cache)
        branch = self._prefixes.branch(tokens)
        for start in range(done, len(tokens), self._chunk):
            if 0 < start == branch:
                self._prefixes.keep(tokens[:start], jax.tree.map(jnp.copy, cache))
            part = np.zeros((1, self._chunk), np.int32)
            some = tokens[start : start + self._chunk]
            part[0, : len(some)] = some
            lengths = np.array([len(tokens)], np.int32)
            cache = prefill(self._model, cache, part, np.int32(start), lengths)
        self._prefixes.keep(tokens, cache)
        return cache

    def _roll(self, place: int, task: _Task) -> None:
        """Read the tokens again that a full row keeps."""
        drawn = task.drawn()
        whole = np.concatenate([task.kept, drawn[task.since :]])
        task.kept, task.since = rolled(whole, task.request.sinks, self.context), len(drawn)
        self._take_row(place, task)

    def _reason(self, task: _Task, broken: bool) -> Reason:
        """Say why a row has ended."""
        request, drawn = task.request, task.drawn()
        if broken:
            return "broken"
        if len(drawn) and drawn[-1] in request.stop_ids:
            return "stop"
        if request.automaton is not None:
            state = walk(request.automaton, drawn)
            if (request.automaton.successors[state] < 0).all():
                return "stop"
        if len(drawn) < request.max_tokens:
            return "context"
        return "length"

    def _end(self, task: _Task, reason: Reason) -> Generated:
        """Let a request go."""
        self._tasks = [None if other is task else other for other in self._tasks]
        self._tickets = {n: other for n, other in self._tickets.items() if other is not task}
        request, nothing = task.request, _nothing(task.request.alternatives)
        parts = (np.concatenate(part) for part in zip(nothing, *task.pieces, strict=True))
        piece = Piece(*parts)
        cut = len(request.prompt) + task.since - len(task.kept)
        if cut and reason in ("length", "context"):
            reason = "rolled" if request.overflow == "roll" else "truncated"
        return Generated(*piece, reason, cut)


def _constraint(task: _Task | None) -> Constraint | None:
    """Say what the text of a row must be."""
    if task is None or task.request.automaton is None:
        return None
    return Constraint(task.request.automaton, task.request.stop_ids)


def _piece(written: Written, row: int, alternatives: int) -> Piece:
    """Take the tokens of one row."""
    length = int(written.length[row])
    tokens, log_probs, drawn, likeliest, theirs = (np.asarray(x[row, :length]) for x in written[:5])
    return Piece(tokens, log_probs, drawn, likeliest[:, :alternatives], theirs[:, :alternatives])


def _nothing(alternatives: int) -> Piece:
    ids, numbers = np.zeros(0, np.int32), np.zeros(0, np.float32)
    shape = (0, min(alternatives, MOST_ALTERNATIVES))
    return Piece(ids, numbers, numbers, np.zeros(shape, np.int32), np.zeros(shape, np.float32))
