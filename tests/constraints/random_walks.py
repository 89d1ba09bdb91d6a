"""Texts at random along a token automaton, by the rule that generation keeps."""

import numpy as np

JSON_PIECES = (
    *("{", "}", "[", "]", '"', ":", ",", '{"', '":', '":"', '","', '"}', '"]', "},{", "[]", "{}"),
    *("true", "false", "null", "tr", "ue", "nu", "ll", "-1", "10", "00", "0.", ".5", "1e", "e-"),
    *("ab", "abc", "name", "na", "me", "kind", "\\n", "\\", '\\"', "\\u0", "é", "日本", "🙂", " "),
)
FRAGMENTS = tuple(
    text.encode()[cut] for text in ("é", "日", "🙂") for cut in (slice(1), slice(1, None))
)
END = b""


class Pieces:
    """A tokenizer: all bytes, pieces of JSON, parts of characters, and one id that ends a text."""

    def __init__(self, *more):
        pieces = [bytes([byte]) for byte in range(256)]
        pieces += [piece.encode() for piece in JSON_PIECES]
        self.pieces = (*pieces, *FRAGMENTS, *more, END)
        self.vocab_size = len(self.pieces)
        self.end = self.vocab_size - 1
        self.digest = "0123456789abcdef"


def walk(automaton, tokenizer, rows, budget, rng, scale=2.0):
    """Draw texts with random logits, at most `budget` tokens each; returns their tokens.

    With n tokens left, this one included, a token is allowed if what follows can end within n - 1;
    the end is, where the text may end; a row ends by itself where nothing may follow.
    """
    classes, successors, distance, start = automaton
    vocabulary = np.append(classes, 0)  # the end comes last
    logits = rng.normal(0, scale, (rows, len(vocabulary))).astype(np.float32)
    state = np.full(rows, start)
    drawn = [[] for _ in range(rows)]
    active = np.arange(rows)
    assert distance[start] <= budget
    for left in range(budget, 0, -1):
        active = active[(distance[state[active]] > 0) | (successors[state[active]] >= 0).any(1)]
        if not active.size:
            break
        after = successors[state[active]]
        in_time = (after >= 0) & (distance[after] <= left - 1)
        allowed = in_time[:, vocabulary]
        allowed[:, -1] = distance[state[active]] == 0
        assert allowed.any(1).all(), "generation must never be stuck"
        noise = rng.gumbel(size=allowed.shape).astype(np.float32)
        chosen = np.where(allowed, logits[active] + noise, -np.inf).argmax(1)
        going = chosen < len(classes)
        for row, token in zip(active[going], chosen[going], strict=True):
            drawn[row].append(int(token))
        active = active[going]
        state[active] = after[going, vocabulary[chosen[going]]]
    assert (distance[state] == 0).all(), "every text is whole"
    return drawn


def texts(automaton, tokenizer, rows, budget, rng):
    """Draw texts."""
    tokens = walk(automaton, tokenizer, rows, budget, rng)
    return [b"".join(tokenizer.pieces[t] for t in row).decode("utf-8") for row in tokens]
