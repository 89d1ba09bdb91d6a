"""Seven short strings, with all that can be said of a policy over them in float64.

Strings of at most two of the tokens end, a and b; what is cut after two has no end. Answers thus
differ in length, and the second token depends on the first.
"""

import jax.numpy as jnp
import numpy as np

from tests.rl.enumerated import nodes, strings

STRINGS = strings(3, 2)
NODES = np.asarray(nodes(jnp.asarray(STRINGS.tokens), 3))
PLACES = STRINGS.mask > 0
LENGTHS = STRINGS.mask.sum(-1)
SCORES = np.random.default_rng(0).uniform(0, 1.5, len(LENGTHS))
BY_STRING = {
    tuple(answer[: int(length)]): score
    for answer, length, score in zip(STRINGS.targets.tolist(), LENGTHS, SCORES, strict=True)
}


def log_softmax(table):
    table = np.asarray(table, np.float64)
    return table - np.logaddexp.reduce(table, axis=-1, keepdims=True)


def token_log_probs(table):
    return np.where(PLACES, log_softmax(table)[NODES, STRINGS.targets], 0.0)


def ascent(table, gains):
    """sum_y pi(y) sum_t gains[y, t] d log pi(y_t) / d table, in float64."""
    log_p = log_softmax(table)
    chance = np.exp(token_log_probs(table).sum(-1))
    found = np.zeros(table.shape)
    for y, t in zip(*np.nonzero(PLACES), strict=True):
        node, token = NODES[y, t], STRINGS.targets[y, t]
        one = np.arange(3) == token
        found[node] += chance[y] * gains[y, t] * (one - np.exp(log_p[node]))
    return found


def of_tokens(x):
    return np.broadcast_to(np.asarray(x)[:, None], PLACES.shape)
