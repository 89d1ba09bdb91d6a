"""What a constrained text may go on with: automata over tokens, as tables on the device.

The automata of all rows lie one behind the other in two flat arrays of a few possible sizes, so
that other automata are other numbers and not another program. B rows, V vocabulary, S states, C
classes of tokens that act alike, N entries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from genai_jax.constraints.token_automaton import TokenAutomaton

_SIZES = (1 << 20, 1 << 22, 1 << 24)
FREE = -1
"""The state of a row whose text may be anything."""
_NEVER = np.int32(2**30)
_EXTRA = 2  # classes of our own: what ends the text, and whether it has ended by itself


class Tables(NamedTuple):
    """The automata of the rows.

    Attributes:
        successor: The state after a token, at `base + state * width + class`.
        need: How many tokens a complete text needs after that one, at least.
        classes: Of each id, in a row's automaton.
        base: Where a row's automaton begins.
        width: How many classes it has.
    """

    successor: Int[Any, " n"]
    need: Int[Any, " n"]
    classes: Int[Any, "b v"]
    base: Int[Any, " b"]
    width: Int[Any, " b"]


class Constraint(NamedTuple):
    """What the text of a row must be.

    Attributes:
        automaton: Which tokens may follow which.
        stop_ids: Tokens that end a complete text.
    """

    automaton: TokenAutomaton
    stop_ids: Sequence[int]


def fit_together(constraints: Sequence[Constraint | None]) -> bool:
    """Whether there is room for the tables of all of them."""
    return _size(constraints) is not None


def _size(constraints: Sequence[Constraint | None]) -> int | None:
    automata = (constraint.automaton for constraint in constraints if constraint)
    total = sum({id(automaton): _entries(automaton) for automaton in automata}.values())
    return next((size for size in _SIZES if size >= total), None)


def make_tables(constraints: Sequence[Constraint | None], vocab_size: int) -> Tables:
    """Lay out the automata of rows.

    Args:
        constraints: Of the rows; None is anything. Those that share an automaton share its table.
        vocab_size: V, of the model's logits.

    Raises:
        ValueError: If they are too large together.
    """
    rows = len(constraints)
    size = _size(constraints)
    if size is None:
        raise ValueError(
            f"the automata of all rows must have at most {_SIZES[-1]:,} entries together. Simplify "
            "the schemas, or ask for fewer of them at once."
        )
    successor, need = np.zeros(size, np.int32), np.full(size, _NEVER, np.int32)
    classes = np.zeros((rows, vocab_size), np.int32)
    base, width = np.zeros(rows, np.int32), np.ones(rows, np.int32)
    begins: dict[int, int] = {}
    end = 0
    for row, constraint in enumerate(constraints):
        if constraint is None:
            continue
        automaton, stop_ids = constraint
        if id(automaton) not in begins:
            begins[id(automaton)], begin = end, end
            end += _entries(automaton)
            flat = (table.reshape(-1) for table in _flatten(automaton))
            successor[begin:end], need[begin:end] = flat
        count = automaton.successors.shape[1]
        # Ids that the tokenizer lacks act like the last class, which is never drawn.
        classes[row] = count + 1
        classes[row, : len(automaton.classes)] = automaton.classes
        classes[row, list(stop_ids)] = count
        base[row], width[row] = begins[id(automaton)], count + _EXTRA
    return Tables(successor, need, classes, base, width)


def _entries(automaton: TokenAutomaton) -> int:
    states, classes = automaton.successors.shape
    return states * (classes + _EXTRA)


def _flatten(automaton: TokenAutomaton) -> tuple[np.ndarray, np.ndarray]:
    """Make the two tables of an automaton, with our own classes behind its own."""
    successors, distance = automaton.successors, automaton.distance
    states, count = successors.shape
    after = np.arange(states, dtype=np.int32)[:, None].repeat(count + _EXTRA, axis=1)
    after[:, :count] = np.maximum(successors, 0)
    need = np.full(after.shape, _NEVER, np.int32)
    need[:, :count] = np.where(successors < 0, _NEVER, distance[np.maximum(successors, 0)])
    need[:, count] = np.where(distance == 0, 0, _NEVER)
    # What nothing can follow is never drawn, but says by its successor that the text has ended.
    after[:, count + 1] = (successors < 0).all(1)
    return after, need


def allow_only(
    logits: Float[Array, "b v"],
    tables: Tables,
    states: Int[Any, " b"],
    left: Int[Any, " b"],
) -> Float[Array, "b v"]:
    """Forbid what a row's text cannot go on with, or could not be completed after.

    Args:
        logits: Of the rows.
        tables: Their automata.
        states: Their states.
        left: How many tokens they may still draw, this one among them.
    """

    def constrain(logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
        first = (tables.base + jnp.maximum(states, 0) * tables.width)[:, None]
        allowed = jnp.asarray(tables.need)[first + tables.classes] < left[:, None]
        return jnp.where(allowed | (states == FREE)[:, None], logits, -jnp.inf)

    return jax.lax.cond(jnp.any(states != FREE), constrain, lambda x: x, logits)


def follow(
    tables: Tables, states: Int[Any, " b"], tokens: Int[Any, " b"]
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Say which states tokens lead to, and whether the text has ended there by itself."""
    rows = jnp.arange(states.shape[0])
    first = tables.base + jnp.maximum(states, 0) * tables.width
    successor = jnp.asarray(tables.successor)
    after = successor[first + jnp.asarray(tables.classes)[rows, tokens]]
    ended = successor[tables.base + after * tables.width + tables.width - 1] == 1
    free = states == FREE
    return jnp.where(free, FREE, after), ~free & ended


def walk(automaton: TokenAutomaton, tokens: np.ndarray) -> int:
    """Say which state tokens lead to from the start.

    Raises:
        ValueError: If one of them is not allowed.
    """
    state = automaton.start
    for token in tokens.tolist():
        state = int(automaton.successors[state, automaton.classes[token]])
        if state < 0:
            raise ValueError(f"token {token} is not allowed by the automaton.")
    return state
