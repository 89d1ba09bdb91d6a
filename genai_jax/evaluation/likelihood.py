"""How likely a model finds a held-out text: nats per token and bits per byte, over all of it."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from genai_jax.data.text import TextConfig, load_text
from genai_jax.data.tokenizers import Tokenizer
from genai_jax.evaluation.evaluator import Evaluator, Rows, make_totals, means_of
from genai_jax.objectives.next_token import next_token
from genai_jax.types import Objective, PyTree


def make_text_evaluator(
    objective: Objective, mesh: Mesh, rows: Rows, batch_size: int, num_bytes: int
) -> Evaluator:
    r"""Make a function that evaluates a language model on every row once.

    Args:
        objective: `(model, batch, context) -> Terms`; batches have no key: no dropout.
        mesh: Rows are dealt out over all of its devices.
        rows: The split. Rows past its end, which fill the last batch, have a loss mask of zero.
        batch_size: Rows of a call; the devices divide it.
        num_bytes: Bytes of text that the predicted tokens stand for.

    Returns:
        A function that gives the mean of every term, and `bits_per_byte`: the loss summed over all
        tokens, over $\ln 2$ times `num_bytes`.

    Raises:
        ValueError: If the devices do not divide the batch.
    """
    totals_of = make_totals(objective, mesh, rows, batch_size)

    def evaluate(model: PyTree, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        totals = totals_of(model, check)
        bits_per_byte = float(totals["loss"][0] / (math.log(2) * num_bytes))
        return means_of(totals) | {"bits_per_byte": bits_per_byte}

    return evaluate


def make_source_evaluators(
    sources: Sequence[str],
    like: TextConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    length: int,
    batch_size: int,
) -> Evaluator:
    """Make a function that finds how likely the held-out part of each of some sources is.

    Args:
        sources: As `TextConfig` names them.
        like: How they are cleaned and split.
        tokenizer: Of the model.
        mesh: Rows are dealt out over all of its devices.
        length: T, tokens of a row.
        batch_size: Rows of a call; the devices divide it.

    Returns:
        A function that gives `<source>/loss` and `<source>/bits_per_byte` of each, with what is no
        letter or digit of its name as a dot.
    """
    evaluators = {}
    for source in sources:
        config = dataclasses.replace(like, path=None, sources=(source,), weights=())
        data = load_text(config, length=length, seed=0, tokenizer=tokenizer)
        evaluators[re.sub(r"\W+", ".", source)] = make_text_evaluator(
            next_token, mesh, data.validation, batch_size, data.validation_bytes
        )

    def evaluate(model: PyTree, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, evaluator in evaluators.items():
            found = evaluator(model, check)
            values |= {f"{name}/{kind}": found[kind] for kind in ("loss", "bits_per_byte")}
        return values

    return evaluate
