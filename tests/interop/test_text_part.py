import json

import jax
import numpy as np
import pytest

from genai_jax.interop.checkpoint_folder import (
    CheckpointError,
    CheckpointFolder,
    plan_files,
    write_checkpoint,
)
from genai_jax.interop.export import save_pretrained
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.interop.safetensors import Outgoing
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.rope import RopeConfig

GEMMA3 = TransformerConfig(
    vocab_size=64,
    num_layers=3,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=48,
    norm_offset=1.0,
    norm_eps=1e-6,
    post_norms=True,
    qk_norm=True,
    embedding_scale=True,
    activation="gelu",
    window=8,
    layer_pattern=("sliding", "sliding", "global"),
    rope=RopeConfig(1_000_000.0, "linear", 8.0),
    local_theta=10_000.0,
)
EYES = {"vision_tower.patch.weight": (4, 3), "multi_modal_projector.norm.weight": (5,)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The language model by itself."""
    folder = tmp_path_factory.mktemp("alone")
    save_pretrained(folder, LanguageModel(GEMMA3, jax.random.key(0)), most_file_bytes=30_000)
    return folder


def dress(alone, folder, prefix, before="", extra=()):
    """Put a language model into one that sees, as its authors publish it."""
    source = CheckpointFolder(alone)
    tensors = {}
    for name in source.entries:
        values = np.array(source[name])
        theirs = prefix + name.removeprefix("model.")
        tensors[theirs] = Outgoing(values.dtype, values.shape, lambda values=values: values)
    for name, shape in [*EYES.items(), *extra]:
        values = np.ones(shape, np.float32)
        tensors[before + name] = Outgoing(values.dtype, shape, lambda values=values: values)
    write_checkpoint(folder, tensors, plan_files(tensors, 30_000))
    raw = json.loads((alone / "config.json").read_text())
    kept = {name: raw.pop(name) for name in ("torch_dtype",)} | {"eos_token_id": [1, 106]}
    del raw["architectures"]
    whole = kept | {"model_type": "gemma3", "text_config": raw, "vision_config": {"x": 1}}
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("prefix", "before"), [("language_model.model.", ""), ("model.language_model.", "model.")]
)
def test_the_language_model_is_found_and_goes_out_by_itself(alone, tmp_path, prefix, before):
    dress(alone, tmp_path / "whole", prefix, before)
    expected, found = PretrainedFolder(alone), PretrainedFolder(tmp_path / "whole")
    assert found.config == expected.config
    for ours, theirs in zip(*map(jax.tree.leaves, (found.load(), expected.load())), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    save_pretrained(tmp_path / "out", found.load(), origin=found.origin)
    again = PretrainedFolder(tmp_path / "out")
    assert again.config == expected.config and again.origin.prefix == "model."
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["model_type"] == "gemma3_text" and raw["eos_token_id"] == [1, 106]
    assert "vision_config" not in raw
    names = CheckpointFolder(tmp_path / "out").entries
    assert names.keys() == CheckpointFolder(alone).entries.keys()
    save_pretrained(tmp_path / "twice", again.load(), origin=again.origin)
    for path in sorted((tmp_path / "out").iterdir()):
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()


def test_tensors_that_nobody_knows_are_named(alone, tmp_path):
    dress(alone, tmp_path, "language_model.model.", extra=[("audio_tower.x", (2,))])
    with pytest.raises(CheckpointError, match=r"not known are 'audio_tower\.x'"):
        PretrainedFolder(tmp_path)
