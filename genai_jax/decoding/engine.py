"""Many requests over a few rows: each takes a row when one is free, and leaves it when it ends."""

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence

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
    place_rows,
    read_part,
    read_texts,
)
from genai_jax.decoding.prefixes import Prefixes
from genai_jax.decoding.requests import Request, check_request, kept_prompt, owned, rolled
from genai_jax.decoding.results import Generated, Piece, Reason, join, take_piece
from genai_jax.decoding.rows import Rows, empty_rows, join_rows, make_row
from genai_jax.decoding.tables import make_tables, walk
from genai_jax.decoding.tasks import Task, choose, constraint_of
from genai_jax.types import PyTree


class Engine:
    """Draws what follows prompts, a few rows at a time.

    A request's tokens depend on its prompt, settings and seed, on the model and on the engine's own
    numbers (rows, context, width, chunk, together); to the last bit of their probabilities. They
    depend neither on other requests, nor on the row, nor on how many tokens a step draws.
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
        together: int = 1,
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
            together: Different prompts that are read at a time, fewer than `rows`: always as many,
                the missing ones padding. For many short ones that come at once.
            prefixes: Caches of prompts to keep; a prompt that begins like one of them is read from
                where it differs. 0 where prompts are read together.
            quantized: Whether keys and values are kept as 8-bit integers.

        Raises:
            ValueError: If a number is out of its range.
        """
        most = model.config.max_length
        known = model.config.vocab_size if vocab_size is None else vocab_size
        ranges = {
            "rows": (rows, 2, 1 << 16),
            "context": (context or most, 2, most),
            "width": (width, 1, 16),
            "chunk": (chunk, 1, 1 << 16),
            "together": (together, 1, max(1, rows - 1)),
            "prefixes": (prefixes, 0, 1 << 16 if together == 1 else 0),
            "vocab_size": (known, 1, model.config.vocab_size),
        }
        for name, (value, lowest, highest) in ranges.items():
            if not lowest <= value <= highest:
                raise ValueError(f"`{name}` must be from {lowest} to {highest}; got {value}.")
        if chunk & (chunk - 1):
            raise ValueError(f"`chunk` must be a power of two; got {chunk}.")
        self.context = context or most
        self._vocab_size = model.config.vocab_size
        self._known = np.int32(known)
        self._model = on_one_device(model)
        self._width, self._chunk, self._together = width, chunk, together
        # Prompts are padded to whole chunks; what is guessed may lie behind the last token.
        self._slots = -(-self.context // chunk) * chunk + width - 1
        self._quantized = quantized
        self._prefixes = Prefixes(prefixes, chunk, whole=prefixes > 0 and self._forgets())
        self._tasks: list[Task | None] = [None] * rows
        self._tickets: dict[int, Task] = {}
        self._queue: collections.deque[Task] = collections.deque()
        self._numbers = itertools.count()
        self._tables = jax.device_put(make_tables([None] * rows, self._vocab_size))
        self._rows: Rows | None = None
        self._ended: dict[int, Generated] = {}  # of which nobody was told yet
        self._telling = False

    def _cache(self, rows: int, more: int = 0) -> PyTree:
        return empty_cache(self._model, rows, self._slots + more, self._width, self._quantized)

    def _forgets(self) -> bool:
        """Whether some layers keep fewer tokens than a row has: they would have no more slots."""
        shapes = (jax.tree.leaves(jax.eval_shape(lambda n=n: self._cache(1, n))) for n in (0, 1))
        return any(a.shape == b.shape for a, b in zip(*shapes, strict=True))

    @property
    def busy(self) -> bool:
        """Whether a `step` would have something to do, or to tell."""
        return bool(self._tickets or self._ended)

    def submit(
        self, request: Request, on_piece: Callable[[Piece], None] = lambda piece: None
    ) -> int:
        """Take a request in.

        Args:
            request: What is asked for.
            on_piece: Is called with its new tokens after every step; may call `submit` and
                `cancel`.

        Returns:
            The ticket by which `step` names it.

        Raises:
            ContextError: If it exceeds the context, and should be refused then.
            ValueError: If it contradicts itself.
        """
        request = owned(request)
        check_request(request, int(self._known), self.context)
        task = Task(next(self._numbers), request, on_piece, kept_prompt(request, self.context))
        self._tickets[task.ticket] = task
        self._queue.append(task)
        return task.ticket

    def cancel(self, ticket: int) -> Generated:
        """End a request, and give its row to another one.

        One that has ended, of which no `step` has told yet, is given as it is.

        Raises:
            KeyError: If there is no such request any more, or never was.
        """
        if ticket in self._ended:
            return self._ended.pop(ticket)
        task = self._tickets[ticket]
        task.cancelled = True
        return self._end(task, "cancelled")

    def step(self, steps: int = STEPS) -> dict[int, Generated]:
        """Draw the next tokens of all requests that have a row.

        Where it is interrupted, or a callback raises, nothing that was drawn before is lost: what
        is under way is read again, and the next step tells what has ended.

        Args:
            steps: How many for each, about; more than 64 are 64. Rows that have ended wait for
                the others, unless a request waits for a row.

        Returns:
            The requests that have ended, by their tickets.

        Raises:
            RuntimeError: If it is called by what is told of a piece.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1; got {steps}.")
        if self._telling:
            raise RuntimeError("`step` must not be called by `on_piece`, which it calls itself.")
        try:
            self._fill_rows()
            drawn = self._draw(min(steps, STEPS)) if any(self._tasks) else None
        except BaseException:
            self._read_again()
            raise
        if drawn is not None:
            self._tell(self._note(*drawn))
        ended, self._ended = self._ended, {}
        return ended

    def keep(self, results: Mapping[int, Generated]) -> None:
        """Have the next `step` return results, since they are not for who has got them."""
        self._ended |= results

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
        requests = [owned(request) for request in requests]
        for request in requests:
            check_request(request, int(self._known), self.context)
        tickets = [self.submit(request) for request in requests]
        results: dict[int, Generated] = {}
        try:
            while not results.keys() >= set(tickets):
                check()
                results |= self.step()
        finally:
            for ticket in set(tickets) & (self._tickets.keys() | self._ended.keys()):
                self.cancel(ticket)
            self.keep({n: result for n, result in results.items() if n not in tickets})
        return [results[ticket] for ticket in tickets]

    def _draw(self, steps: int) -> tuple[Written, np.ndarray, np.ndarray]:
        """Let the device draw; also which rows have ended, and which of them are broken."""
        halt = np.array([task is None for task in self._tasks])
        # Given away, until the device's answer is here: an interrupt may come in between.
        rows, self._rows = self._rows, None
        rows, written = advance(
            self._model,
            rows,
            self._tables,
            self._known,
            halt,
            np.int32(steps),
            np.bool_(not self._queue),
            width=self._width,
        )
        found = jax.device_get((written, rows.ended, rows.broken))
        self._rows = rows
        return found

    def _note(
        self, written: Written, ended: np.ndarray, broken: np.ndarray
    ) -> list[tuple[Task, Piece]]:
        """Note what was drawn, and let go what has ended; gives what is to be told."""
        pieces = []
        for place, task in enumerate(self._tasks):
            if task is not None:
                piece = take_piece(written, place, task.request.alternatives)
                task.pieces.append(piece)
                pieces.append((task, piece))
        for place, task in enumerate(list(self._tasks)):
            if task is not None and ended[place]:
                reason = self._reason(task, bool(broken[place]))
                if reason == "context" and task.request.overflow == "roll":
                    self._wait_again(place, task)
                else:
                    self._ended[task.ticket] = self._end(task, reason)
        return pieces

    def _tell(self, pieces: Sequence[tuple[Task, Piece]]) -> None:
        """Tell everybody of their tokens, whatever anybody makes of it."""
        errors = []
        self._telling = True
        try:
            for task, piece in pieces:
                try:
                    if not task.cancelled:
                        task.on_piece(piece)
                except Exception as error:
                    errors.append(error)
        finally:
            self._telling = False
        if errors:
            raise errors[0]

    def _wait_again(self, place: int, task: Task) -> None:
        """Have a row read again, as the first of those who wait."""
        text = task.text()
        if len(text) >= self.context:
            text = rolled(text, task.request.sinks, self.context)
        task.kept, task.since = text, len(task.drawn())
        self._tasks[place] = None
        self._queue.appendleft(task)

    def _read_again(self) -> None:
        """Have all rows read again, if what was computed of them is lost."""
        if self._rows is None:
            for place, task in reversed(list(enumerate(self._tasks))):
                if task is not None:
                    self._wait_again(place, task)

    def _fill_rows(self) -> None:
        """Give free rows to those who wait, if their automata fit beside those of the others."""
        while chosen := choose(self._tasks, self._queue, self._together):
            try:
                if self._together == 1:
                    self._take_alone(*chosen.items())
                else:
                    self._take_together(chosen)
            except Exception:
                for task in chosen.values():
                    self._ended[task.ticket] = self._end(task, "broken")
                raise

    def _row_of(self, task: Task, cache: PyTree) -> Rows:
        return make_row(
            task.request,
            task.kept,
            task.drawn(),
            cache,
            context=self.context,
            slots=self._slots if self._width > 1 else 0,
            vocab_size=self._vocab_size,
        )

    def _take_alone(self, chosen: tuple[int, Task]) -> None:
        """Read what stands before the next token of one."""
        place, task = chosen
        row = self._row_of(task, self._read(task.kept[:-1], keep=not task.since))
        self._take_rows({place: task}, row, lambda rows: place_row(rows, row, np.int32(place)))

    def _take_together(self, chosen: Mapping[int, Task]) -> None:
        """Read what stands before the next tokens of several, equal texts once."""
        texts = {task.kept[:-1].tobytes(): task.kept[:-1] for task in chosen.values()}
        cache = self._cache(self._together)
        cache = read_texts(self._model, cache, list(texts.values()), self._together, self._chunk)
        each = [self._row_of(task, None) for task in chosen.values()]
        sources = [list(texts).index(task.kept[:-1].tobytes()) for task in chosen.values()]
        some = join_rows(each, sources, list(chosen), len(self._tasks))
        self._take_rows(chosen, each[0], lambda rows: place_rows(rows, cache, some))

    def _take_rows(
        self, chosen: Mapping[int, Task], like: Rows, put: Callable[[Rows], Rows]
    ) -> None:
        """Put into their rows what was read."""
        held = [chosen.get(place, task) for place, task in enumerate(self._tasks)]
        if any(task.request.automaton is not None for task in chosen.values()):
            constraints = [constraint_of(other) for other in held]
            self._tables = jax.device_put(make_tables(constraints, self._vocab_size))
        rows, self._rows = self._rows, None
        if rows is None:
            rows = empty_rows(like, self._cache(len(held)), len(held))
        self._rows = put(rows)
        self._tasks = held
        for task in chosen.values():
            self._queue.remove(task)

    def _read(self, tokens: np.ndarray, *, keep: bool) -> PyTree:
        """Make a cache of one row with these tokens in it, and keep it for others perhaps."""
        done, cache = self._prefixes.longest(tokens)
        if done == len(tokens) and cache is not None:
            return cache
        # Reading overwrites a cache; one that is kept must stay as it is.
        cache = self._cache(1) if cache is None else jax.tree.map(jnp.copy, cache)
        branch = self._prefixes.branch(tokens)
        for start in range(done, len(tokens), self._chunk):
            if 0 < start == branch:
                self._prefixes.keep(tokens[:start], jax.tree.map(jnp.copy, cache))
            cache = read_part(self._model, cache, tokens, start, self._chunk)
        if keep:
            self._prefixes.keep(tokens, cache)
        return cache

    def _reason(self, task: Task, broken: bool) -> Reason:
        """Say why a row has ended."""
        request, drawn = task.request, task.drawn()
        if broken:
            return "broken"
        if len(drawn) >= max(1, request.sampling.min_tokens) and drawn[-1] in request.stop_ids:
            return "stop"
        if request.automaton is not None:
            state = walk(request.automaton, drawn)
            if (request.automaton.successors[state] < 0).all():
                return "stop"
        if len(drawn) < request.max_tokens:
            return "context"
        return "length"

    def _end(self, task: Task, reason: Reason) -> Generated:
        """Let a request go."""
        self._tasks = [None if other is task else other for other in self._tasks]
        if task in self._queue:
            self._queue.remove(task)
        del self._tickets[task.ticket]
        request = task.request
        cut = len(request.prompt) + task.since - len(task.kept)
        if cut and reason in ("length", "context"):
            reason = "rolled" if request.overflow == "roll" else "truncated"
        return join(task.pieces, request.alternatives, reason, cut)
