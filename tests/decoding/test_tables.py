import jax
import numpy as np
import pytest

from genai_jax.decoding import tables as tables_module
from genai_jax.decoding.tables import (
    FREE,
    Constraint,
    TokenAutomaton,
    allow_only,
    fit_together,
    follow,
    make_tables,
    walk,
)

V = 12


def random_automaton(seed, states=5, classes=4, vocab=V - 2):
    """The last state is complete and has no successor; distances are by breadth-first search."""
    numbers = np.random.default_rng(seed)
    successors = numbers.integers(-1, states, (states, classes)).astype(np.int32)
    successors[-1] = -1
    successors[:-1, 0] = np.arange(1, states)
    distance = np.full(states, 99, np.int32)
    distance[-1] = distance[1] = 0
    for _ in range(states):
        for state in range(states):
            for after in successors[state]:
                if after >= 0:
                    distance[state] = min(distance[state], 1 + distance[after])
    return TokenAutomaton(
        numbers.integers(0, classes, vocab).astype(np.int32), successors, distance, 0
    )


@pytest.fixture(scope="module")
def rows():
    """Of an automaton, of none, of another, and of the first one again."""
    first, second = random_automaton(1), random_automaton(2, states=7, classes=3)
    return [
        Constraint(first, [10]),
        None,
        Constraint(second, [3, 11]),
        Constraint(first, []),
    ]


def test_what_may_follow_is_what_the_automaton_says(rows):
    tables = jax.device_put(make_tables(rows, V))
    allow, step = jax.jit(allow_only), jax.jit(follow)
    logits = np.zeros((4, V), np.float32)
    for state in range(5):
        for left in range(1, 5):
            states = np.array([state, FREE, state, state], np.int32)
            found = np.isfinite(allow(logits, tables, states, np.full(4, left, np.int32)))
            after = [step(tables, states, np.full(4, token, np.int32)) for token in range(V)]
            assert found[1].all()
            for row in (0, 2, 3):
                automaton, stops = rows[row]
                for token in range(V):
                    if token in stops:
                        assert found[row, token] == (automaton.distance[state] == 0)
                        continue
                    known = token < len(automaton.classes)
                    lands = automaton.successors[state, automaton.classes[token]] if known else -1
                    fits = lands >= 0 and automaton.distance[lands] <= left - 1
                    assert found[row, token] == fits, (state, left, row, token)
                    if lands >= 0:
                        assert after[token][0][row] == lands
                        alone = (automaton.successors[lands] < 0).all()
                        assert bool(after[token][1][row]) == alone
            assert all(x[0][1] == FREE and not x[1][1] for x in after)


def test_rows_share_the_table_of_an_automaton(rows):
    tables = make_tables(rows, V)
    assert tables.base[0] == tables.base[3] != tables.base[2]
    assert tables.successor.shape == tables.need.shape == (1 << 20,)
    large = np.zeros((3000, 300), np.int32)
    several = [
        Constraint(TokenAutomaton(np.zeros(V, np.int32), large, large[:, 0], 0), [])
        for _ in range(2)
    ]
    assert make_tables([*several, None], V).need.shape == (1 << 22,)


def test_what_does_not_fit_together_is_refused(monkeypatch, rows):
    monkeypatch.setattr(tables_module, "_SIZES", (60,))
    assert fit_together([rows[0], rows[3], None]) and not fit_together(rows)
    with pytest.raises(ValueError, match="at most 60 entries together"):
        make_tables(rows, V)


def test_walking_ends_where_tokens_lead():
    automaton = random_automaton(3)
    token = np.flatnonzero(automaton.classes == 0)[:1]
    assert walk(automaton, np.repeat(token, 4)) == 4
    with pytest.raises(ValueError, match="not allowed"):
        walk(automaton, np.repeat(token, 5))
