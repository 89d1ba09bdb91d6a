"""Language models that say a number for each token: rewards and values.

B rows, T tokens of a row, D width.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.linear import Linear

ScoreReading = Literal["last", "running"]

_ROOT = 8.0  # of the tokens of a short answer: sums begin about as wide as single numbers


class ScalarModel(nnx.Module):
    r"""A language model whose head is one number a token.

    Of the last token alone it is $s_t = w^\top h_t + b$; as a running total,
    $s_t = \frac{1}{8} \sum_{u \le t} w^\top h_u + b$, where each token adds what it is worth.
    A reward model reads s at the last token of an answer, a critic at all of them.

    Attributes:
        trunk: The language model; its own head is not used.
        score: w and b. Other code takes what says "score" for part of no language model.
        reading: last or running.
    """

    def __init__(
        self,
        trunk: LanguageModel,
        key: PRNGKeyArray,
        *,
        init_std: float | None = None,
        reading: ScoreReading = "last",
    ):
        r"""Put a head on a language model.

        Args:
            trunk: Any, pre-trained or fine-tuned.
            key: For w.
            init_std: Of w; None is $1 / \sqrt{D + 1}$, a reward model's; 0 for a critic's.
            reading: last, or running: what is wrong in one word is then learned where it stands,
                and need not be carried to the end; a prompt adds the same to all its answers.

        Reference: Stiennon et al., arXiv:2009.01325, as listed by Huang et al., "The N
            Implementation Details of RLHF with PPO".
        """
        width = trunk.config.embed_dim
        std = (width + 1) ** -0.5 if init_std is None else init_std
        self.trunk = trunk
        self.score = Linear((width,), (1,), key, init_std=std, use_bias=True)
        self.reading = reading

    @property
    def config(self) -> TransformerConfig:
        """The shape of the language model."""
        return self.trunk.config

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "#b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b t"]:
        """Compute the number of each token, in float32; arguments as `LanguageModel.hidden`.

        Raises:
            ValueError: If a running total is asked of packed texts.
        """
        hidden = self.trunk.hidden(tokens, positions=positions, segment_ids=segment_ids, key=key)
        numbers = self.score(hidden.astype(jnp.float32))[..., 0]
        if self.reading == "last":
            return numbers
        if segment_ids is not None:
            raise ValueError("a running total must be of one text a row; got packed rows.")
        assert self.score.bias is not None
        bias = self.score.bias[...]
        return jnp.cumsum(numbers - bias, axis=1) / _ROOT + bias

    def at_end(self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"]) -> Float[Array, " b"]:
        """Compute the number of the last real token of each row: the reward of a text.

        Args:
            tokens: Rows, padded at the right with any ids.
            lengths: Real tokens of each row, at least 1.
        """
        last = jnp.arange(tokens.shape[1]) == lengths[:, None] - 1
        return jnp.sum(jnp.where(last, self(tokens), 0.0), axis=-1)


def rescaled(
    model: ScalarModel, gain: float | Float[Array, ""], bias: float | Float[Array, ""]
) -> ScalarModel:
    """Copy a model whose numbers are `gain` times what they were, plus `bias`.

    Args:
        model: Any.
        gain: Factor of w and of b.
        bias: Is added to b.
    """
    model = nnx.clone(model)
    head = model.score
    assert head.bias is not None
    head.kernel = nnx.Param(gain * head.kernel[...])
    head.bias = nnx.Param(gain * head.bias[...] + bias)
    return model


class ActorCritic(nnx.Module):
    """A policy and its critic, trained together.

    Attributes:
        policy: Writes.
        critic: Says what reward is to be expected.
    """

    def __init__(self, policy: LanguageModel, critic: ScalarModel):
        """Put the two side by side; they share nothing."""
        self.policy = policy
        self.critic = critic
