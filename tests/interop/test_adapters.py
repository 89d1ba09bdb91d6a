import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.interop.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AdapterError,
    load_adapter,
    save_adapter,
)
from genai_jax.interop.export import save_pretrained
from genai_jax.interop.safetensors import Outgoing, SafetensorsFile, write_safetensors
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import add_lora, attach, is_adapter, projections
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.paths import map_named, named_leaves

LLAMA = TransformerConfig(
    vocab_size=31, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, mlp_dim=24
)
GPT2 = dataclasses.replace(
    LLAMA,
    num_kv_heads=None,
    norm="layer",
    norm_bias=True,
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
)


RANK_TWO = LoraConfig(rank=2)


def shape_of(config):
    """A model that is but described."""
    return jax.eval_shape(lambda: LanguageModel(config, jax.random.key(0)))


@functools.cache
def model(config):
    return jax.jit(lambda: LanguageModel(config, jax.random.key(0)))()


@functools.cache
def adapted(config, lora=RANK_TWO):
    """A model with adapters whose numbers are all random."""

    def make(model):
        new = add_lora(model, lora, jax.random.key(1))
        key = jax.random.key(2)
        return map_named(
            lambda name, x: x + jax.random.normal(key, x.shape) if is_adapter(name) else x, new
        )

    return jax.jit(make)(model(config))


def write(folder, tensors, metadata):
    outgoing = {
        name: Outgoing(x.dtype, x.shape, functools.partial(np.array, x))
        for name, x in tensors.items()
    }
    write_safetensors(folder / ADAPTER_WEIGHTS, outgoing, metadata)


def read(folder):
    file = SafetensorsFile(folder / ADAPTER_WEIGHTS)
    return {name: np.array(file[name]) for name in file.entries}, file.metadata


def change(folder, **fields):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (name, x), y in zip(named_leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (LLAMA, LoraConfig(rank=3, alpha=7.5, dora=True)),
        (GPT2, LoraConfig(rank=2, targets=("value", "up"), dora=True)),
        (GPT2, LoraConfig(rank=2, rslora=True)),
    ],
)
def test_what_goes_out_comes_in(config, lora, layers, tmp_path):
    config = dataclasses.replace(config, layers=layers)
    before = adapted(config, lora)
    save_adapter(tmp_path, before)
    assert_equal(load_adapter(tmp_path, model(config)), before)


def test_queries_keys_and_values_of_gpt2_share_an_adapter_that_came_as_one(tmp_path):
    """By hand: A is everybody's, B in thirds; parted, they are blocks on a diagonal."""
    save_adapter(tmp_path, adapted(GPT2))
    blocks, metadata = read(tmp_path)
    stem = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    a, b = blocks[f"{stem}A.weight"], blocks[f"{stem}B.weight"]
    assert a.shape == (6, 16) and b.shape == (48, 6) and metadata["ranks of blocks"] == "2,2,2"
    for i, name in enumerate(("query", "key", "value")):
        lora = projections(adapted(GPT2))[f"layers/0/attention/{name}"].lora
        np.testing.assert_array_equal(a[2 * i : 2 * i + 2], np.asarray(lora.a[...]).T)
        rows = b[16 * i : 16 * i + 16].copy()
        own = rows[:, 2 * i : 2 * i + 2].copy()
        np.testing.assert_array_equal(own, np.asarray(lora.b[...]).reshape(2, 16).T)
        rows[:, 2 * i : 2 * i + 2] = 0
        assert not rows.any()
    said = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert said["rank_pattern"] == {f"transformer.h.{i}.attn.c_attn": 6 for i in range(2)}
    assert said["alpha_pattern"] == {f"transformer.h.{i}.attn.c_attn": 48 for i in range(2)}
    assert said["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    # Without the note, or where it no longer holds, it is one adapter for the three.
    b[0, 5] = 1.0
    for tensors, noted in ((blocks, metadata), (blocks, {"format": "pt"})):
        write(tmp_path, tensors, noted)
        whole = load_adapter(tmp_path, model(GPT2))
        attention = whole.layers[0].attention
        np.testing.assert_array_equal(attention.query.lora.a[...], a.T)
        np.testing.assert_array_equal(attention.value.lora.a[...], a.T)
        assert attention.key.lora.scale == 8.0
        thirds = np.concatenate(
            [
                np.asarray(layer.lora.b[...]).reshape(6, 16).T
                for layer in (attention.query, attention.key, attention.value)
            ]
        )
        np.testing.assert_array_equal(thirds, b)
    save_adapter(tmp_path / "again", whole)
    again, metadata = read(tmp_path / "again")
    assert metadata == {"format": "pt"}
    assert {name: x.tobytes() for name, x in again.items()} == {
        name: x.tobytes() for name, x in blocks.items()
    }


@pytest.fixture
def folder(tmp_path):
    save_adapter(tmp_path / "adapter", adapted(LLAMA), base="someone/llama")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"peft_type": "LOHA"}, "`peft_type` must be LORA"),
        ({"bias": "lora_only"}, "`bias` must be none"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save` must be empty"),
        ({"layers_to_transform": [0]}, "`layers_to_transform` must be empty"),
        ({"trainable_token_indices": [3]}, "`trainable_token_indices` must be empty"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` must be one that leaves the base"),
        ({"init_lora_weights": 1}, "`init_lora_weights` must be one that leaves the base"),
        ({"rank_pattern": {".*q_proj": 2}}, "`rank_pattern` must be an object by plain names"),
        ({"rank_pattern": [3]}, "`rank_pattern` must be an object by plain names"),
        ({"use_dora": "yes"}, "`use_dora` must be true or false"),
        ({"r": 0}, "`r` must be a number above 0; got 0"),
        ({"lora_alpha": "8"}, "`lora_alpha` must be a number above 0; got '8'"),
        ({"lora_alpha": None}, "`lora_alpha` must be a number above 0; got None"),
        ({"r": 4}, r"must be .*\(4, 24\).* for this model and the rank"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_adapters_of_other_kinds_are_refused(folder, fields, rule):
    change(folder, **fields)
    with pytest.raises(AdapterError, match=rule) as caught:
        load_adapter(folder, model(LLAMA))
    assert len(str(caught.value)) < 700


def test_an_adapter_for_another_model_is_refused_by_what_does_not_fit(folder):
    deeper = dataclasses.replace(LLAMA, num_layers=3)
    with pytest.raises(AdapterError, match=r"it lacks the modules 'layers\.2\.mlp\.down_proj'"):
        load_adapter(folder, shape_of(deeper))
    with pytest.raises(AdapterError, match=r"has what the model lacks: .*layers\.1\."):
        load_adapter(folder, shape_of(dataclasses.replace(LLAMA, num_layers=1)))
    wider = dataclasses.replace(LLAMA, mlp_dim=32)
    with pytest.raises(AdapterError, match=r"down_proj' must be .*\(2, 32\).* got .*\(2, 24\)"):
        load_adapter(folder, shape_of(wider))
    with pytest.raises(AdapterError, match=r"a gpt2 of 2 layers; it has what the model lacks"):
        load_adapter(folder, model(GPT2))


def test_missing_and_surplus_tensors_are_named(folder):
    tensors, metadata = read(folder)
    gone = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    write(folder, {n: x for n, x in tensors.items() if n != gone}, metadata)
    with pytest.raises(AdapterError, match=r"adapter of 'layers\.1\.mlp\.up_proj' must be"):
        load_adapter(folder, model(LLAMA))
    write(folder, tensors | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 2))}, metadata)
    with pytest.raises(AdapterError, match=r"what the model lacks: .*lm_head"):
        load_adapter(folder, model(LLAMA))
    write(folder, {}, metadata)
    with pytest.raises(AdapterError, match="it has no tensors"):
        load_adapter(folder, model(LLAMA))
    write(folder, tensors | {gone: np.ones((24, 2), np.int32)}, metadata)
    with pytest.raises(AdapterError, match="must be F32, BF16, F16; got I32"):
        load_adapter(folder, model(LLAMA))


def test_half_precision_and_another_base_are_read_with_a_warning(folder, capsys):
    tensors, metadata = read(folder)
    write(folder, {name: x.astype(jnp.bfloat16) for name, x in tensors.items()}, metadata)
    lora = projections(load_adapter(folder, model(LLAMA), base="else/Mistral"))
    exact = projections(adapted(LLAMA))["layers/1/mlp/up"].lora.a[...]
    np.testing.assert_array_equal(
        lora["layers/1/mlp/up"].lora.a[...], exact.astype(jnp.bfloat16).astype(jnp.float32)
    )
    assert (
        "says that it is for someone/llama; it is put onto else/Mistral" in capsys.readouterr().err
    )
    load_adapter(folder, model(LLAMA), base="/models/Llama")
    load_adapter(folder, model(LLAMA))
    assert capsys.readouterr().err == ""


def test_pickles_are_refused(folder):
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights only"):
        load_adapter(folder, model(LLAMA))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"adapter_config\.json is missing"):
        load_adapter(folder, model(LLAMA))


def test_adapters_are_saved_by_themselves_and_models_without(tmp_path):
    with pytest.raises(ValueError, match="must have adapters to save; this one has none"):
        save_adapter(tmp_path, model(LLAMA))
    with pytest.raises(ValueError, match="is written without adapters; this one has some"):
        save_pretrained(tmp_path, adapted(LLAMA))
    assert attach(adapted(LLAMA), {}).layers[0].mlp.up.lora is None
