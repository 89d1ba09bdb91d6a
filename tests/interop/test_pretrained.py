import dataclasses
import json
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_jax.data.folders import FolderError
from genai_jax.interop.checkpoint_folder import INDEX, CheckpointError
from genai_jax.interop.export import find_family, save_pretrained
from genai_jax.interop.llama import LLAMA_DEFAULTS
from genai_jax.interop.pretrained import FAMILIES, PretrainedFolder, read_config
from genai_jax.interop.safetensors import Outgoing, SafetensorsFile, write_safetensors
from genai_jax.interop.settings import ConfigError
from genai_jax.models.lm import SHARDING_RULES, LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import shardings_for
from genai_jax.paths import named_leaves

SHAPE = TransformerConfig(
    vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48
)
MODEL = "model.safetensors"
TABLE = "model.embed_tokens.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def model():
    return LanguageModel(SHAPE, jax.random.key(0))


@pytest.fixture
def folder(tmp_path, model):
    save_pretrained(tmp_path / "model", model)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path, model):
    """A folder of several files."""
    save_pretrained(tmp_path / "sharded", model, most_file_bytes=30_000)
    return tmp_path / "sharded"


def change_config(folder, **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))


def change_tensors(folder, change):
    file = SafetensorsFile(folder / MODEL)
    tensors = {name: np.array(file[name]) for name in file.entries}
    change(tensors)
    outgoing = {name: Outgoing(x.dtype, x.shape, lambda x=x: x) for name, x in tensors.items()}
    write_safetensors(folder / MODEL, outgoing, file.metadata)


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def assert_equal(one, other):
    for (name, x), y in zip(named_leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def test_what_was_written_is_read(folder, sharded, model):
    for path in (folder, sharded):
        source = PretrainedFolder(path)
        assert_equal(source.load(), model)
        assert source.family.model_type == "llama"
    assert len(list(sharded.glob("*.safetensors"))) > 2 and not (folder / INDEX).exists()


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_every_device_gets_its_part(sharded, model, layers):
    """Into eight devices, cut by the rules of FSDP: what one device would have, and no more."""
    source = PretrainedFolder(sharded)
    mesh = make_mesh(fsdp=8)
    like = source.abstract(dataclasses.replace(source.config, layers=layers))
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        like,
        shardings_for(like, mesh, SHARDING_RULES),
    )
    loaded = dict(named_leaves(source.load(like)))
    assert loaded["embedding/table"].addressable_data(0).shape == (8, 32)
    expected = dict(named_leaves(model))
    for name, leaf in loaded.items():
        of_layers = [x for other, x in expected.items() if re.sub(r"/\d+/", "/", other) == name]
        whole = expected[name] if name in expected else np.stack(of_layers)
        np.testing.assert_array_equal(np.asarray(leaf), whole, err_msg=name)


def test_reading_holds_the_model_once(tmp_path):
    """NumPy's own memory: never more than the model and one tensor."""
    shape = dataclasses.replace(SHAPE, embed_dim=256, num_layers=4, mlp_dim=1024, vocab_size=2048)
    save_pretrained(tmp_path, LanguageModel(shape, jax.random.key(0)))
    source = PretrainedFolder(tmp_path)
    sizes = [leaf.size * 4 for leaf in jax.tree.leaves(source.abstract())]
    tracemalloc.start()
    loaded = source.load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(jax.tree.leaves(loaded)) == len(sizes)
    assert peak < sum(sizes) + max(sizes) + 500_000


def test_types_of_what_is_asked_for(folder, model):
    source = PretrainedFolder(folder)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), source.abstract())
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    assert_equal(source.load(like), expected)


def test_another_shape_is_refused(folder):
    source = PretrainedFolder(folder)
    for changes in ({"num_layers": 4}, {"embed_dim": 64}, {"tied": False}):
        other = dataclasses.replace(SHAPE, **changes)
        like = jax.eval_shape(lambda other=other: LanguageModel(other, jax.random.key(0)))
        with pytest.raises(CheckpointError, match="another shape"):
            source.load(like)


def missing(tensors):
    del tensors[NORM]


def surplus(tensors):
    tensors["vision.weight"] = np.zeros(2, np.float32)


def reshaped(tensors):
    tensors[NORM] = np.zeros(31, np.float32)


def quantised(tensors):
    tensors[NORM] = np.zeros(32, np.int8)


def head_of_its_own(tensors):
    tensors["lm_head.weight"] = tensors[TABLE] + 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (missing, "missing are 'model.norm.weight'"),
        (surplus, "not known are 'vision.weight'"),
        (reshaped, r"'model.norm.weight' must have shape \(32,\), .*got \(31,\)"),
        (quantised, "must be F32, BF16, F16; got I8"),
        (head_of_its_own, "'lm_head.weight' differs from"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, rule):
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=rule):
        PretrainedFolder(folder)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model_type": "mamba"}, "`model_type` must be one of llama, .*got 'mamba'"),
        ({"model_type": None}, "got None"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be a whole number from 1 to 10,000"),
        ({"num_hidden_layers": 10**12}, "`num_hidden_layers`"),
        ({"num_hidden_layers": 10_000}, "describes 10,000 layers, yet there are"),
        ({"hidden_size": 2**40}, "`hidden_size`"),
        ({"num_hidden_layers": "3"}, 'got "3"'),
        ({"num_hidden_layers": True}, "got true"),
        ({"hidden_size": -32}, "`hidden_size`"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` must be a number above 0"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps`"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"hidden_act": "swoosh"}, "`hidden_act` must be one of gelu_new"),
        ({"hidden_act": ["silu"]}, "`hidden_act` must be one of"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must be false: nothing else"),
        ({"model_type": ["llama"]}, "`model_type` must be one of llama"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {}},
            "`rope_scaling` must be absent where there are `rope_parameters`",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "`rope_type` must be one of default, linear"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 'got "dynamic"'),
        ({"rope_scaling": {"type": "linear"}}, "`factor` must be a number above 0; got null"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "`factor`"),
        ({"rope_scaling": [2.0]}, "must be an object"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be 1.0"),
        ({"num_key_value_heads": 3}, "`num_heads` must be divisible by `num_kv_heads`"),
        ({"head_dim": 7}, "even head size; got 7"),
        ({"hidden_size": 40}, "must have shape"),
        ({"num_hidden_layers": 4}, "missing are 'model.layers.3.*and 4 more"),
        ({"num_hidden_layers": 2}, "not known are 'model.layers.2."),
        ({"tie_word_embeddings": False}, "missing are 'lm_head.weight'"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(folder, changes, rule):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=rule) as caught:
        PretrainedFolder(folder)
    assert len(str(caught.value)) < 700


def test_what_a_family_does_not_read_changes_nothing(folder):
    before = PretrainedFolder(folder).config
    change_config(folder, layer_types=["sliding_attention"] * 3, sliding_window=3, pruned_heads={})
    assert PretrainedFolder(folder).config == before


QWEN = {"model_type": "qwen2", "num_hidden_layers": 3, "sliding_window": 8}
GEMMA = {"model_type": "gemma3_text", "num_hidden_layers": 3}
FULL, SLIDING = {"rope_theta": 1e6}, {"rope_theta": 1e4}


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (QWEN | {"layer_types": ["full_attention"]}, "a list of 3 names, one a layer"),
        (QWEN | {"layer_types": ["full_attention", "x", "y"]}, "one of full_attention, sliding_at"),
        (QWEN | {"use_sliding_window": True, "max_window_layers": None}, "`max_window_layers`"),
        (QWEN | {"use_sliding_window": True, "max_window_layers": "3"}, "`max_window_layers`"),
        (
            QWEN | {"layer_types": ["sliding_attention"] * 3, "sliding_window": None},
            "need `sliding_window`; got null",
        ),
        (GEMMA | {"rope_parameters": {"full_attention": FULL}}, "both, without"),
        (GEMMA | {"rope_parameters": FULL}, "both, without"),
        (
            GEMMA
            | {"rope_parameters": {"full_attention": FULL, "sliding_attention": SLIDING}}
            | {"rope_local_base_freq": 1e4},
            "both, without",
        ),
        (GEMMA | {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` must be null"),
        ({"model_type": "gemma2", "sliding_window": None}, "need `sliding_window`"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "must be false"),
    ],
)
def test_what_a_family_cannot_say_is_refused(raw, rule):
    with pytest.raises(ConfigError, match=rule):
        read_config(raw)


FIELDS = sorted(LLAMA_DEFAULTS | {"head_dim": 8, "num_key_value_heads": 2, "attention_bias": False})
FIELDS += ["mlp_bias", "rope_scaling", "rope_parameters", "layer_types", "sliding_window"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES |= st.sampled_from([2**31 - 1, 2**20, 1e308, "sliding_attention", "yarn", "llama3"])
ROPE = st.sampled_from(["rope_type", "factor", "rope_theta", "beta_fast", "full_attention"])
VALUES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ROPE, inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from([family.model_type for family in FAMILIES]),
    st.dictionaries(
        st.sampled_from(sorted({name for family in FAMILIES for name in family.defaults})),
        VALUES,
        max_size=3,
    ),
)
def test_whatever_a_config_says_it_is_read_or_refused(name, changes):
    try:
        read_config({"model_type": name, "num_hidden_layers": 2, "n_layer": 2} | changes)
    except ValueError as error:
        assert len(str(error)) < 1000


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_whatever_a_field_says_it_is_read_or_refused(folder, changes):
    kept = (folder / "config.json").read_text()
    try:
        change_config(folder, **changes)
        PretrainedFolder(folder)
    except ValueError as error:
        assert len(str(error)) < 1000
    finally:
        (folder / "config.json").write_text(kept)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "must hold an object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_config_that_is_none_is_refused(folder, text, rule):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(FolderError, match=rule):
        PretrainedFolder(folder)


def test_folders_without_a_checkpoint_say_what_to_fetch(tmp_path, folder):
    with pytest.raises(CheckpointError, match="is no folder"):
        PretrainedFolder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has neither"):
        PretrainedFolder(tmp_path / "empty")
    (folder / MODEL).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model.bin\)"):
        PretrainedFolder(folder)
    (folder / "pytorch_model.bin").rename(folder / MODEL)
    (folder / "config.json").unlink()
    with pytest.raises(FolderError, match=r"config.json is missing"):
        PretrainedFolder(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin", "", 3, None]
)
def test_an_index_names_files_of_its_folder_only(sharded, name):
    change_index(sharded, lambda index: index["weight_map"].update({NORM: name}))
    with pytest.raises(CheckpointError, match="without a path"):
        PretrainedFolder(sharded)


def test_an_index_must_fit_its_files(sharded):
    change_index(sharded, lambda index: index["weight_map"].pop(NORM))
    with pytest.raises(CheckpointError, match=r"must agree; they do not on 'model\.norm"):
        PretrainedFolder(sharded)
    change_index(sharded, lambda index: index.update(weight_map=[]))
    with pytest.raises(CheckpointError, match="weight_map"):
        PretrainedFolder(sharded)


def test_a_missing_file_of_several_is_named(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FolderError, match=f"{gone.name} is missing"):
        PretrainedFolder(sharded)


def test_a_tensor_in_two_files_is_refused(sharded):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="lies in two files"):
        PretrainedFolder(sharded)


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    outside = tmp_path / "elsewhere.safetensors"
    (folder / MODEL).rename(outside)
    (folder / MODEL).symlink_to(outside)
    with pytest.raises(FolderError, match="outside of the folder"):
        PretrainedFolder(folder)


def test_links_of_the_hub_s_cache_are_followed(folder, tmp_path, model):
    """Its snapshots are links to the blobs beside them."""
    cache = tmp_path / "models--someone--something"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in ("config.json", MODEL):
        blob = cache / "blobs" / f"of-{name}"
        (folder / name).rename(blob)
        (snapshot / name).symlink_to(blob)
    assert_equal(PretrainedFolder(snapshot).load(), model)


def test_a_model_of_no_family_is_refused_with_the_nearest():
    odd = dataclasses.replace(SHAPE, norm_offset=0.5, activation="relu2")
    with pytest.raises(
        ConfigError, match=r"nearest to this one is llama, .*`norm_offset` 0.5 \(0.0"
    ):
        find_family(odd)


def test_a_shape_that_some_families_cannot_have_finds_its_own():
    odd = TransformerConfig(vocab_size=9, embed_dim=36, num_heads=8, head_dim=16, qk_norm=True)
    assert find_family(odd)[0].model_type == "qwen3"


def test_a_changed_shape_goes_out_as_what_it_is_now(folder, tmp_path):
    """Of the origin's configuration nothing may stay that would be read."""
    change_config(
        folder,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rope_scaling=None,
        eos_token_id=3,
    )
    source = PretrainedFolder(folder)
    changed = dataclasses.replace(
        source.config, rope=dataclasses.replace(source.config.rope, theta=500_000.0)
    )
    model = LanguageModel(changed, jax.random.key(0))
    save_pretrained(tmp_path / "out", model, origin=source.origin)
    assert PretrainedFolder(tmp_path / "out").config == changed
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 3


def test_texts_go_out_byte_for_byte(sharded, tmp_path):
    """Whatever the ends of lines, the order and the fields of the index; and what lies beside."""
    text = (sharded / "config.json").read_text()
    (sharded / "config.json").write_bytes(text.replace("\n", "\r\n").encode())
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = dict(reversed(index["weight_map"].items()))
    (sharded / INDEX).write_text(json.dumps(index | {"more": 1}))
    (sharded / "LICENSE").write_bytes(b"take it\r\n")
    (sharded / "pytorch_model.bin").write_bytes(b"not this")
    source = PretrainedFolder(sharded)
    save_pretrained(tmp_path / "out", source.load(), origin=source.origin)
    (sharded / "pytorch_model.bin").unlink()
    for path in sharded.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(sharded.iterdir())) == len(list((tmp_path / "out").iterdir()))


def test_buffers_are_left_out_of_files_and_index(sharded, tmp_path):
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    first = sorted(sharded.glob("*.safetensors"))[0]
    file = SafetensorsFile(first)
    tensors = {name: np.array(file[name]) for name in file.entries} | {buffer: np.ones(4)}
    outgoing = {name: Outgoing(x.dtype, x.shape, lambda x=x: x) for name, x in tensors.items()}
    write_safetensors(first, outgoing, file.metadata)
    change_index(sharded, lambda index: index["weight_map"].update({buffer: first.name}))
    source = PretrainedFolder(sharded)
    save_pretrained(tmp_path / "out", source.load(), origin=source.origin)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_families_are_found():
    replace = dataclasses.replace
    learned = replace(
        SHAPE, num_kv_heads=None, norm="layer", positions="learned", gated=False, activation="gelu"
    )
    window = replace(SHAPE, window=8, layer_pattern=("sliding",))
    families = {
        "llama": SHAPE,
        "mistral": window,
        "qwen2": replace(SHAPE, qkv_bias=True),
        "qwen3": replace(SHAPE, qk_norm=True),
        "gpt2": learned,
    }
    for name, shape in families.items():
        assert find_family(shape)[0].model_type == name
