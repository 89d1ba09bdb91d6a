"""From an automaton over bytes to one over the tokens of a tokenizer.

A token's bytes are a function from state to state. The pieces of a vocabulary are a trie, whose
functions follow from those of the parents: f(s) = next(f_parent(s), byte). Few of them differ, so
that the walk takes time for the vocabulary and for the distinct functions, never for all states of
all tokens. V tokens, S states, C classes of tokens that act alike.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from genai_jax.constraints.automata import Arrows, ConstraintError, Dfa

MOST_ENTRIES = 1 << 24
"""Most entries of a table from states and classes to states."""

_AT_A_TIME = 1 << 22  # entries that are computed at once
_DEAD = -1


@runtime_checkable
class PieceTokenizer(Protocol):
    """What a constraint needs of a tokenizer.

    Attributes:
        vocab_size: Number of ids.
        digest: Of all that determines the ids, in hexadecimal.
    """

    vocab_size: int
    digest: str

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; none for a special one."""


class TokenAutomaton(NamedTuple):
    """Which tokens may follow, and where they lead.

    Every state is reached, and can still accept, by tokens alone.

    Attributes:
        classes: The class of each id of the tokenizer, numbered by the first id of each; a model
            that has more ids must not draw those.
        successors: The state after a token of a class; -1 where it is not allowed.
        distance: Fewest tokens from a state to an accepting one; 0 where the text may end.
        start: The first state.
    """

    classes: Int[np.ndarray, " v"]
    successors: Int[np.ndarray, "s c"]
    distance: Int[np.ndarray, " s"]
    start: int


class _Level(NamedTuple):
    """The nodes of a trie that are equally deep.

    Attributes:
        parents: Number of each node's parent in the level before.
        bytes: The byte that leads to it.
        tokens: Ids whose piece ends here.
        nodes: The node of each of them.
    """

    parents: Int[np.ndarray, " n"]
    bytes: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, " t"]
    nodes: Int[np.ndarray, " t"]


class PieceTrie:
    """The pieces of a vocabulary as a trie; made once for a tokenizer.

    Args:
        pieces: The bytes that each id stands for; ids without bytes are in no text.
        vocab_size: Number of ids; pieces from there on are ignored.
    """

    def __init__(self, pieces: Sequence[bytes], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        pieces = pieces[:vocab_size]
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        begins = np.cumsum(lengths) - lengths
        text = np.frombuffer(b"".join(pieces), np.uint8).astype(np.int64)
        node = np.zeros(len(pieces), np.int64)
        levels: list[_Level] = []
        left = np.flatnonzero(lengths)
        while left.size:
            key: np.ndarray = node[left] * 256 + text[begins[left] + len(levels)]
            nodes, node[left] = np.unique(key, return_inverse=True)
            ends = lengths[left] == len(levels) + 1
            done, left = left[ends], left[~ends]
            levels.append(_Level(nodes >> 8, nodes & 255, done, node[done]))
        self.levels = tuple(levels)


class _Functions:
    """Distinct functions from state to state, numbered as they come."""

    def __init__(self, dfa: Dfa) -> None:
        self._states = len(dfa.accepting)
        self._numbers: dict[bytes, int] = {}
        # States are less than 2¹⁵; the last row and the last state are nowhere.
        nowhere = np.full((1, dfa.successors.shape[1]), _DEAD)
        self._next = np.concatenate([dfa.successors, nowhere]).astype(np.int16)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self) -> Int[np.ndarray, "c s"]:
        """Give all functions as a table; its last row leads nowhere."""
        nowhere = np.full(self._states, _DEAD, np.int16).tobytes()
        table = np.frombuffer(b"".join([*self._numbers, nowhere]), np.int16)
        return table.reshape(-1, self._states)

    def identity(self) -> Int[np.ndarray, "1 s"]:
        """Give the function that changes nothing."""
        return np.arange(self._states, dtype=np.int16)[None]

    def follow(
        self, functions: Int[np.ndarray, "f s"], which: Int[np.ndarray, " n"], k: np.ndarray
    ) -> Int[np.ndarray, "n s"]:
        """Let a byte of class `k[i]` follow on the function `which[i]`."""
        return self._next[functions[which], k[:, None]]

    def add(self, rows: Int[np.ndarray, "n s"]) -> Int[np.ndarray, " n"]:
        """Number functions; -1 for one that leads nowhere from everywhere."""
        found = np.full(len(rows), _DEAD, np.int64)
        for i in np.flatnonzero((rows != _DEAD).any(1)).tolist():
            found[i] = self._numbers.setdefault(rows[i].tobytes(), len(self._numbers))
        if len(self) * self._states > MOST_ENTRIES:
            raise ConstraintError(
                f"the table of a constraint must have at most {MOST_ENTRIES:,} entries; "
                f"{self._states:,} states and more than {len(self):,} kinds of tokens have more. "
                "Bound lengths and repetitions by less, or split the schema."
            )
        return found


def token_automaton(dfa: Dfa, trie: PieceTrie) -> TokenAutomaton:
    """Say for every state which tokens may follow.

    Args:
        dfa: The texts that are allowed, as bytes.
        trie: The pieces of a tokenizer.

    Raises:
        ConstraintError: If the table would be too large, or no tokens spell an allowed text.
    """
    classes, functions = _token_functions(dfa, trie)
    tails, heads = _pairs(functions)
    states = len(dfa.accepting)
    distance = Arrows(heads, tails, states).fewest_steps(np.flatnonzero(dfa.accepting))
    if distance[0] < 0:
        raise ConstraintError(
            "some sequence of the tokenizer's tokens must spell an allowed text; none does. Allow "
            "other characters, or choose a tokenizer that has all bytes."
        )
    alive = (distance[tails] >= 0) & (distance[heads] >= 0)
    reached = Arrows(tails[alive], heads[alive], states).fewest_steps(np.array([0])) >= 0
    number = np.full(states + 1, _DEAD, np.int32)  # the last is nowhere's
    number[:-1][reached] = np.arange(reached.sum())
    columns, inverse = _first_of_each(number[functions[:, reached]])
    classes, columns = _in_order(inverse[classes], columns)
    successors = np.ascontiguousarray(columns.T)
    return TokenAutomaton(classes, successors, distance[reached].astype(np.int32), 0)


def _token_functions(
    dfa: Dfa, trie: PieceTrie
) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, "c s"]]:
    """Find each token's function; -1 is the last one, which leads nowhere."""
    ends = _Functions(dfa)
    classes = np.full(trie.vocab_size, _DEAD, np.int64)
    above, of_node = ends.identity(), np.zeros(1, np.int64)
    byte_classes = dfa.successors.shape[1]
    for level in trie.levels:
        key: np.ndarray = of_node[level.parents] * byte_classes + dfa.byte_classes[level.bytes]
        alive = key >= 0
        pairs, inverse = np.unique(key[alive], return_inverse=True)
        here = _Functions(dfa)
        step = max(1, _AT_A_TIME // above.shape[1])
        parts = [pairs[i : i + step] for i in range(0, len(pairs), step)]
        found = [here.add(here.follow(above, *divmod(part, byte_classes))) for part in parts]
        if not len(here):
            break
        of_node = np.full(len(level.parents), _DEAD, np.int64)
        of_node[alive] = np.concatenate(found)[inverse.reshape(-1)]
        above = here.rows()
        used, inverse = np.unique(of_node[level.nodes], return_inverse=True)
        classes[level.tokens] = ends.add(above[used])[inverse.reshape(-1)]
    return classes, ends.rows()


def _pairs(functions: Int[np.ndarray, "c s"]) -> tuple[np.ndarray, np.ndarray]:
    """List the pairs of states that some token leads between."""
    states = functions.shape[1]
    step = max(1, MOST_ENTRIES // states)
    found = []
    for first in range(0, states, step):
        part = functions[:, first : first + step]
        _, tail = np.nonzero(part >= 0)
        leads = np.zeros((part.shape[1], states), bool)
        leads[tail, part[part >= 0]] = True
        tails, heads = np.nonzero(leads)
        found.append((tails + first, heads))
    return np.concatenate([x for x, _ in found]), np.concatenate([x for _, x in found])


def _first_of_each(rows: Int[np.ndarray, "c s"]) -> tuple[np.ndarray, Int[np.ndarray, " c"]]:
    """Keep one of equal rows; returns them, and which of them each row is."""
    numbers: dict[bytes, int] = {}
    inverse = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
    return np.frombuffer(b"".join(numbers), rows.dtype).reshape(len(numbers), -1), inverse


def _in_order(
    classes: Int[np.ndarray, " v"], columns: Int[np.ndarray, "c s"]
) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, "d s"]]:
    """Number classes by their first token; those without one go."""
    used, first, classes = np.unique(classes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.argsort(order)
    return rank[classes.reshape(-1)].astype(np.int32), columns[used[order]]
