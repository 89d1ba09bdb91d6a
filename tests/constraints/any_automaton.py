"""Automata over two letters, for tests of what is made from them."""

from hypothesis import strategies as st

from genai_jax.constraints.automata import explore

LETTERS = b"ab"


def automata(states=8):
    """Any automaton over two letters, with dead, unreached and equivalent states."""
    row = st.lists(st.integers(-1, states - 1), min_size=2, max_size=2)
    table = st.lists(row, min_size=states, max_size=states)
    return st.tuples(table, st.lists(st.booleans(), min_size=states, max_size=states))


def runs(given_automaton, word):
    table, accepting = given_automaton
    state = 0
    for byte in word:
        state = table[state][LETTERS.index(byte)]
        if state < 0:
            return False
    return accepting[state]


def made(given_automaton):
    table, accepting = given_automaton

    def moves(state):
        for letter, target in zip(LETTERS, table[state], strict=True):
            if target >= 0:
                yield 1 << letter, target

    return explore(0, moves, lambda state: accepting[state])
