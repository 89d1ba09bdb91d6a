"""A run that trains adapters: its checkpoints hold all of it, and what is read is merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.evaluation.starting_points import draw_model, read_model
from genai_jax.evaluation.text_runs import init_source, load_text_model
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import adapters_of, is_adapter, without_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.paths import map_named
from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.run_directory import open_run

SHAPE = TransformerConfig(
    vocab_size=ByteTokenizer().vocab_size, num_layers=2, embed_dim=8, num_heads=2, max_length=8
)


@dataclasses.dataclass(frozen=True)
class Config:
    model: TransformerConfig = SHAPE
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(rank=2, dora=True))
    ema_decay: float = 0.0


@pytest.fixture(scope="module")
def adapted():
    def make():
        model = draw_model(SHAPE, Config().lora, 0)
        return map_named(lambda name, x: x + 0.1 * is_adapter(name), model)

    return jax.jit(make)()


@pytest.fixture(scope="module")
def folder(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    with open_run(folder, Config()) as run, Checkpoints(run.folder("checkpoints")) as checkpoints:
        ByteTokenizer().save(run.folder("tokenizer"))
        checkpoints.save(3, {"model": adapted})
    return folder


forward = jax.jit(lambda model, tokens: model(tokens))
TOKENS = jnp.arange(16).reshape(2, 8)


def described(model):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), model)


def test_what_is_read_is_a_plain_model_that_computes_what_was_trained(adapted, folder):
    found = load_text_model(str(folder)).model
    plain = jax.eval_shape(lambda: LanguageModel(SHAPE, jax.random.key(0)))
    assert jax.tree.structure(found) == jax.tree.structure(plain)
    expected = forward(adapted, TOKENS)
    np.testing.assert_allclose(forward(found, TOKENS), expected, atol=1e-5)
    assert np.abs(expected - forward(without_lora(adapted), TOKENS)).max() > 0.01


def test_a_run_may_begin_with_it_and_has_adapters_of_its_own(adapted, folder):
    config = LoraConfig(rank=1, dora=True)
    source = init_source(str(folder))
    like = described(jax.eval_shape(lambda: draw_model(SHAPE, config, 5)))
    initial = read_model(source, like, config, 5)
    assert {lora.rank for lora in adapters_of(initial.model).values()} == {1}
    expected = forward(adapted, TOKENS)
    np.testing.assert_allclose(forward(initial.model, TOKENS), expected, atol=1e-5)
    # The lengths of the columns are those of what was read, not of what was drawn.
    up = initial.model.layers[0].mlp.up
    lengths = np.linalg.norm(np.asarray(up.kernel[...], np.float64), axis=0)
    np.testing.assert_allclose(up.lora.magnitude[...], lengths, rtol=1e-5)
