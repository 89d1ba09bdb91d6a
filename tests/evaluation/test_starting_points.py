"""What a run of post-training begins with, and what of it trains."""

import jax
import numpy as np
import pytest

from genai_jax.data.conversations import said
from genai_jax.evaluation.starting_points import (
    draw_model,
    fresh_start,
    read_model,
    refuse_itself,
    starting_point,
    trains,
)
from genai_jax.interop.checkpoint_folder import FileLayout
from genai_jax.interop.origin import Origin, load_origin
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import without_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.paths import named_leaves
from genai_jax.training.initialise import Initial
from genai_jax.training.run_directory import RunError, open_run
from genai_jax.training.state import abstract_like

SHAPE = TransformerConfig(
    vocab_size=270, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=12
)
LORA = LoraConfig(rank=2)


def source(like):
    return Initial(LanguageModel(SHAPE, jax.random.key(7)), "somewhere", "7")


def test_a_model_that_is_read_has_the_adapters_of_one_that_is_drawn():
    drawn = draw_model(SHAPE, LORA, 3)
    found = read_model(source, abstract_like(drawn), LORA, 3)
    assert (found.about, found.digest) == ("somewhere", "7")
    true = dict(named_leaves(source(None).model))
    for (name, x), (other, y) in zip(named_leaves(found.model), named_leaves(drawn), strict=True):
        assert name == other
        np.testing.assert_array_equal(x, true.get(name, y))
    tokens = jax.numpy.arange(12)[None]
    # B is zero: adapters change nothing before they have learnt.
    np.testing.assert_array_equal(found.model(tokens), source(None).model(tokens))
    other = read_model(source, abstract_like(drawn), LORA, 4).model
    pairs = zip(named_leaves(found.model), named_leaves(other), strict=True)
    differ = [name for (name, x), (_, y) in pairs if (x != y).any()]
    assert differ and all(name.endswith("lora/a") for name in differ)


def test_adapters_and_heads_train_or_everything_does():
    assert trains(LoraConfig(rank=0)) is None
    names = [name for name, _ in named_leaves(draw_model(SHAPE, LORA, 0))]
    chosen = [name for name in names if trains(LORA)(name)]
    assert chosen and all("/lora/" in name for name in chosen)
    base = {name for name, _ in named_leaves(without_lora(draw_model(SHAPE, LORA, 0)))}
    assert not base & set(chosen) and base | set(chosen) == set(names)
    assert trains(LORA)("critic/score/kernel") and trains(LORA)("score/bias")


def test_bytes_are_read_where_nothing_is_given():
    point = fresh_start(TransformerConfig())
    assert point.source is None and point.folder == ""
    (prompt,) = point.renderer.prompts([[said("user", "hé")]])
    assert point.tokenizer.decode(prompt[2:5]) == "hé"
    assert point.shape.vocab_size == point.tokenizer.vocab_size
    assert len(point.renderer.end_ids) == len(set(point.renderer.end_ids)) > 0


def test_where_a_model_came_from_is_known_after_any_number_of_runs(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "LICENSE").write_text("free")
    layout = FileLayout({"model.safetensors": ["x"]}, {}, None)
    Origin(source, "{}", "model.", {"x": "BF16"}, layout).save(tmp_path / "0" / "origin")
    for number in range(2):
        with open_run(tmp_path / f"{number + 1}", {}) as run:
            fresh_start(TransformerConfig())._replace(folder=str(tmp_path / f"{number}")).settle(
                run
            )
    found = load_origin(tmp_path / "2" / "origin")
    assert found is not None and found.dtypes == {"x": "BF16"} and found.layout == layout
    assert (tmp_path / "2" / "origin" / "LICENSE").read_text() == "free"


def test_there_must_be_a_model(tmp_path):
    with pytest.raises(RunError, match=r"post-training begins with a model; got none. Give --init"):
        starting_point("")
    with pytest.raises(RunError, match=r"a run has a config.json; there is none in"):
        starting_point(str(tmp_path))


def test_a_run_does_not_begin_with_itself(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refuse_itself(str(tmp_path / "run"), "", str(tmp_path / "other"))
    for same in ("run", "link", "other/../run"):
        with pytest.raises(RunError, match="must not begin with what is in its own folder"):
            refuse_itself(str(tmp_path / "run"), "", str(tmp_path / same))
