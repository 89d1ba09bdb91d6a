"""What the policy that an alignment starts from says of answers: cached, live, or adapters off.

B rows, K answers to one prompt, T tokens of an answer with its prompt.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from genai_jax.objectives.token_log_probs import sum_log_probs
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.types import Batch

Reference = Literal["cached", "live", "adapter_off", "none"]
"""Where the log-probabilities of the reference come from: cached (`ref_log_probs` of the batch),
live (the frozen model `context["reference"]`), adapter_off (the model itself without its adapters),
or nowhere."""

BaseOf = Callable[[Any], Any]
"""`model -> model`: the same without its adapters."""


def check_reference(source: Reference, base_of: BaseOf | None) -> None:
    """Refuse a source that lacks what it needs.

    Raises:
        ValueError: Saying what is missing.
    """
    if source == "adapter_off" and base_of is None:
        raise ValueError(
            "`reference` 'adapter_off' needs `base_of`, which takes the adapters off a model; got "
            "none. Give it, or choose 'live' or 'cached'."
        )


def reference_log_probs(
    model: Any, batch: Batch, context: Any, source: Reference, base_of: BaseOf | None = None
) -> Float[Array, "b k"]:
    r"""Compute $\log \pi_\mathrm{ref}(y_k \mid x)$ of the answers of each row, without a gradient.

    Args:
        model: The policy, which only adapter_off looks at.
        batch: `tokens`, `targets` and `loss_mask` [B, K, T]; `ref_log_probs` [B, K] if cached.
        context: A dictionary with the model `reference` if live.
        source: Where they come from; not none.
        base_of: Takes the adapters off.

    Raises:
        ValueError: If what the source names is missing, or is of another vocabulary.
    """
    if source == "cached":
        if "ref_log_probs" not in batch:
            raise ValueError(
                "`reference` 'cached' reads `ref_log_probs` [B, K] from the batch; got a batch "
                f"with {', '.join(sorted(batch))}. Score the rows with the reference first, or "
                "choose reference 'live'."
            )
        return jax.lax.stop_gradient(batch["ref_log_probs"])
    if source == "live":
        if not isinstance(context, dict) or context.get("reference") is None:
            raise ValueError(
                "`reference` 'live' reads the frozen model context['reference']; got none. Put it "
                "into the train state's context, or choose reference 'cached'."
            )
        other = context["reference"]
        check_same_vocabulary(model, other, "reference")
    else:
        assert base_of is not None, "check_reference comes first"
        other = base_of(model)
    return jax.lax.stop_gradient(sum_log_probs(other, batch))


def check_same_vocabulary(model: Any, other: Any, name: str) -> None:
    """Refuse a second model that does not speak of the same ids.

    Raises:
        ValueError: If its head has another number of ids.
    """
    ours, theirs = (jax.eval_shape(lambda m=m: m.head()).shape[0] for m in (model, other))
    if ours != theirs:
        raise ValueError(
            f"The {name} must have the model's vocabulary; got {theirs} ids beside {ours}. "
            "Take one with the same tokenizer, and the same padding of the vocabulary."
        )


def make_reference_scorer(
    reference: Any, mesh: Mesh | None = None
) -> Callable[[Batch], Float[Array, "b k"]]:
    r"""Make the jitted function from a batch to its $\log \pi_\mathrm{ref}(y_k \mid x)$.

    For rows that are scored once, before training (`data.scored_rows`), so that no step has to hold
    the reference or to run it.

    Args:
        reference: The frozen policy.
        mesh: Over whose axes rows are dealt out, if their number divides; None leaves the batch to
            JAX.
    """
    score = jax.jit(sum_log_probs)

    def scored(batch: Batch) -> Float[Array, "b k"]:
        part = {name: batch[name] for name in ("tokens", "targets", "loss_mask")}
        if mesh is not None and len(part["tokens"]) % mesh.size == 0:
            part = jax.device_put(part, batch_sharding(mesh))
        return score(reference, part)

    return scored
