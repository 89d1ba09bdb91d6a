"""Log-probabilities and their gradients, beside the definition in float64 and beside the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.objectives.token_log_probs import score_rows, sum_log_probs, token_scores

B, T, D, V = 3, 12, 8, 21
CONFIG = TransformerConfig(
    vocab_size=V, num_layers=1, embed_dim=D, num_heads=2, mlp_dim=16, max_length=T, init_std=0.3
)


def inputs():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    return *map(jnp.float32, (hidden, head)), jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)


def dense(hidden, head, targets, softcap, temperature):
    """The definition in float64."""
    hidden, head, targets = map(np.asarray, (hidden, head, targets))
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return own, -(np.exp(log_p) * log_p).sum(-1), 1 + (log_p > own[..., None]).sum(-1)


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (2.0, 0.7)])
def test_scores_are_the_definitions(chunk, softcap, temperature):
    hidden, head, targets = inputs()
    options = {"softcap": softcap, "temperature": temperature, "chunk": chunk}
    found = token_scores(hidden, head, targets, **options)
    wanted = dense(hidden, head, targets, softcap, temperature)
    np.testing.assert_allclose(found.log_probs, wanted[0], atol=2e-5)
    np.testing.assert_allclose(found.entropy, wanted[1], atol=2e-5)
    np.testing.assert_array_equal(found.ranks, wanted[2])


def test_the_gradient_is_the_indicator_minus_the_probability():
    """d log p_y / d h = (W_y - sum_v p_v W_v) / tau, whatever the chunks."""
    hidden, *rest = inputs()
    weight = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)
    h, head, targets = (np.asarray(x) for x in (hidden, *rest))
    logits = h.astype(np.float64) @ head.T.astype(np.float64) / 0.7
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    wanted = weight[..., None] * (head[targets] - p @ head) / 0.7

    for chunk in (None, 3):

        def loss(hidden, chunk=chunk):
            scores = token_scores(hidden, *rest, temperature=0.7, chunk=chunk)
            return jnp.sum(weight * scores.log_probs)

        np.testing.assert_allclose(jax.grad(loss)(hidden), wanted, atol=3e-5)


def test_an_id_that_cannot_be_drawn_adds_nothing():
    hidden = jnp.zeros((1, 1, 2))
    scores = token_scores(hidden, jnp.zeros((4, 2)), jnp.zeros((1, 1), jnp.int32))
    assert float(scores.entropy[0, 0]) == pytest.approx(np.log(4), rel=1e-6)


def test_sums_are_the_loss_of_training_and_padding_does_not_show():
    model = LanguageModel(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(2)
    ids = rng.integers(0, V, (B, 2, T)).astype(np.int32)
    mask = (rng.random((B, 2, T)) < 0.5).astype(np.float32)
    mask[..., -1] = 0
    batch = {"tokens": ids, "targets": np.roll(ids, -1, -1), "loss_mask": mask}
    batch = jax.tree.map(jnp.asarray, batch)
    sums = jax.jit(sum_log_probs)(model, batch)
    for row in range(B):
        for answer in range(2):
            one = {name: x[row, answer][None] for name, x in batch.items()}
            loss = next_token(model, one)["loss"].sum
            np.testing.assert_allclose(sums[row, answer], -loss, rtol=1e-5)
    cut = {name: x[..., : T - 1] for name, x in batch.items()}
    np.testing.assert_allclose(sum_log_probs(model, cut), sums, rtol=1e-5)
    scores = score_rows(model, batch["tokens"][:, 0], batch["targets"][:, 0])
    assert scores.log_probs.shape == (B, T)


def test_a_chunk_must_divide_the_row():
    hidden, head, targets = inputs()
    with pytest.raises(ValueError, match="`chunk` must divide the row; got 5 and 12 tokens"):
        token_scores(hidden, head, targets, chunk=5)
