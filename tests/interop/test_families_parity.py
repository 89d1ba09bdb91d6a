"""Models of seven families, from transformers: the same logits, and the same bytes out again."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.interop.export import save_pretrained
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.rope import RopeConfig

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import torch
import transformers

V, D, F, L, N, K, T = 61, 32, 48, 4, 4, 2, 40

BASE = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = PLAIN | {"rope_type": "linear", "factor": 2.0}
GEMMA = BASE | {
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "tie_word_embeddings": True,
}
SLIDING = ["sliding_attention", "full_attention"] * 2


def llama(**changes):
    return transformers.LlamaConfig(**BASE | {"rope_parameters": PLAIN} | changes)


def gpt2(**changes):
    fields = {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": N, "n_positions": 64}
    return transformers.GPT2Config(**fields | {"bos_token_id": 1, "eos_token_id": 2} | changes)


def qwen2(**changes):
    return transformers.Qwen2Config(**BASE | {"rope_parameters": PLAIN} | changes)


FAMILIES = {
    "gpt2": gpt2,
    "gpt2, unscaled": lambda: gpt2(n_inner=F, scale_attn_weights=False, activation_function="gelu"),
    "llama 2": lambda: llama(num_key_value_heads=N),
    "llama 2, linear, biases": lambda: llama(
        rope_parameters=LINEAR, attention_bias=True, mlp_bias=True
    ),
    "llama 3": lambda: llama(rope_parameters=LLAMA3),
    "llama 3, tied": lambda: llama(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=16),
    "mistral, sliding": lambda: transformers.MistralConfig(
        **BASE, rope_parameters=PLAIN, sliding_window=7, head_dim=16
    ),
    "mistral": lambda: transformers.MistralConfig(
        **BASE, rope_parameters=PLAIN, sliding_window=None
    ),
    "qwen 2.5, yarn": lambda: qwen2(rope_parameters=YARN),
    "qwen 2.5, sliding, tied": lambda: qwen2(
        use_sliding_window=True, sliding_window=7, max_window_layers=3, tie_word_embeddings=True
    ),
    "qwen 3": lambda: transformers.Qwen3Config(**BASE, rope_parameters=PLAIN, head_dim=16),
    "qwen 3, biases, yarn": lambda: transformers.Qwen3Config(
        **BASE, rope_parameters=YARN, attention_bias=True
    ),
    "gemma 2": lambda: transformers.Gemma2Config(
        **GEMMA,
        rope_parameters=PLAIN,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma 3": lambda: transformers.Gemma3TextConfig(
        **GEMMA,
        rope_parameters={
            "sliding_attention": PLAIN | {"rope_theta": 100.0},
            "full_attention": LINEAR | {"factor": 8.0},
        },
        layer_types=SLIDING,
    ),
}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def random_model(settings, dtype=torch.float32):
    """Make a model of theirs whose parameters are all random, norms and biases too."""
    torch.manual_seed(0)
    settings._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype)


def read_by_them(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model.float()(torch.from_numpy(tokens)).logits.numpy()


def assert_same_logits(theirs, ours):
    tokens = np.random.default_rng(0).integers(0, V, (2, T))
    expected = logits_of(theirs, tokens)
    assert np.std(expected) > 0.3  # they say something
    found = jax.jit(lambda model, x: model(x))(ours, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def assert_same_files(one, other):
    """Two folders hold the same bytes: headers, tensors, metadata, index and config.json."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Their model, and the folder that they wrote."""
    folder = tmp_path_factory.mktemp("theirs")
    model = random_model(FAMILIES[request.param]())
    model.save_pretrained(folder)
    return model, folder


def test_logits_are_theirs(family):
    theirs, folder = family
    assert_same_logits(theirs, PretrainedFolder(folder).load())


def test_what_comes_in_goes_out_to_the_last_byte(family, tmp_path):
    _, folder = family
    source = PretrainedFolder(folder)
    save_pretrained(tmp_path / "again", source.load(), origin=source.origin)
    assert_same_files(folder, tmp_path / "again")
    scanned = dataclasses.replace(source.config, layers="scanned")
    stacked = source.load(source.abstract(scanned))
    assert stacked.layers.attention.query.kernel.shape[0] == L
    save_pretrained(tmp_path / "stacked", stacked, origin=source.origin)
    assert_same_files(folder, tmp_path / "stacked")


def test_without_its_origin_a_model_goes_out_as_one_that_they_read(family, tmp_path):
    theirs, folder = family
    model = PretrainedFolder(folder).load()
    save_pretrained(tmp_path, model, most_file_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = read_by_them(tmp_path)
    tokens = np.random.default_rng(1).integers(0, V, (2, T))
    np.testing.assert_allclose(logits_of(again, tokens), logits_of(theirs, tokens), atol=1e-6)
    assert PretrainedFolder(tmp_path).config == PretrainedFolder(folder).config


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_what_it_is(dtype, tmp_path):
    model = random_model(FAMILIES["gemma 3"](), TYPES[dtype])
    model.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    source = PretrainedFolder(tmp_path / "theirs")
    ours = source.load()
    assert source.config.param_dtype == dtype
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(ours)} == {dtype}
    save_pretrained(tmp_path / "ours", ours, origin=source.origin)
    assert_same_files(tmp_path / "theirs", tmp_path / "ours")
    # A copy in float32, as training wants it, goes back to the same halves.
    wide = source.load(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), ours))
    assert_same_logits(read_by_them(tmp_path / "theirs"), wide)
    save_pretrained(tmp_path / "wide", wide, origin=source.origin)
    assert_same_files(tmp_path / "theirs", tmp_path / "wide")
    save_pretrained(tmp_path / "again", wide, origin=source.origin, dtype=np.dtype("float32"))
    assert PretrainedFolder(tmp_path / "again").config.param_dtype == "float32"


def test_both_dialects_of_config_say_the_same(tmp_path):
    cases = {"llama 3": LLAMA3, "qwen 2.5, yarn": YARN, "llama 2, linear, biases": LINEAR}
    for name, rope in cases.items():
        settings = FAMILIES[name]()
        random_model(settings).save_pretrained(tmp_path / name)
        newer = PretrainedFolder(tmp_path / name).config
        path = tmp_path / name / "config.json"
        raw = json.loads(path.read_text())
        del raw["rope_parameters"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        scaling["type"] = scaling.pop("rope_type")  # older still: `type`
        raw |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
        path.write_text(json.dumps(raw))
        assert PretrainedFolder(tmp_path / name).config == newer
    folder = tmp_path / "gemma"
    random_model(FAMILIES["gemma 3"]()).save_pretrained(folder)
    newer = PretrainedFolder(folder).config
    raw = json.loads((folder / "config.json").read_text())
    del raw["rope_parameters"], raw["layer_types"]
    raw |= {"rope_theta": 10_000.0, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2}
    raw |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    (folder / "config.json").write_text(json.dumps(raw))
    assert PretrainedFolder(folder).config == newer


def test_absent_fields_mean_what_transformers_takes_them_for(tmp_path):
    """The defaults of every family, by the configuration that an empty object gives there."""
    from genai_jax.interop.pretrained import FAMILIES as OURS
    from genai_jax.interop.pretrained import read_config

    classes = {
        "gpt2": transformers.GPT2Config,
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma2": transformers.Gemma2Config,
        "gemma3_text": transformers.Gemma3TextConfig,
    }
    assert classes.keys() == {family.model_type for family in OURS}
    for name, make in classes.items():
        _, absent = read_config({"model_type": name})
        _, written = read_config(make().to_dict())
        assert absent == written, name


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_goes_out_with_the_prefix_and_the_head_it_came_with(prefix, tmp_path):
    """The first files of GPT-2 have no prefix, masks beside the weights, and others a head."""
    safetensors = pytest.importorskip("safetensors.numpy")
    model = random_model(FAMILIES["gpt2"]())
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = safetensors.load_file(path)
    tensors = {prefix + name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"]
    safetensors.save_file(tensors, path, metadata={"format": "pt", "made by": "hand"})
    kept = path.read_bytes()
    mask = {f"{prefix}h.{i}.attn.bias": np.tri(64, dtype=np.float32) for i in range(L)}
    safetensors.save_file(tensors | mask, path, metadata={"format": "pt", "made by": "hand"})
    source = PretrainedFolder(tmp_path / "theirs")
    ours = source.load()
    assert_same_logits(model, ours)
    save_pretrained(tmp_path / "ours", ours, origin=source.origin)
    again = safetensors.load_file(tmp_path / "ours" / "model.safetensors")
    assert {name: x.tobytes() for name, x in again.items()} == {
        name: x.tobytes() for name, x in tensors.items()
    }
    assert b'"made by":"hand"' in kept[:200]
    written = (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert b'"made by":"hand"' in written[:200] and len(written) == len(kept)


OWN = {
    "quickstart": TransformerConfig(vocab_size=V, num_layers=2, embed_dim=D, num_heads=N),
    "untied, scanned": TransformerConfig(
        vocab_size=V, num_layers=3, embed_dim=D, num_heads=N, tied=False, layers="scanned"
    ),
    "sliding": TransformerConfig(
        vocab_size=V,
        num_layers=3,
        embed_dim=D,
        num_heads=N,
        window=5,
        layer_pattern=("sliding", "sliding", "global"),
        qkv_bias=True,
    ),
    "nanoGPT": TransformerConfig(
        vocab_size=V,
        num_layers=2,
        embed_dim=D,
        num_heads=N,
        norm="layer",
        positions="learned",
        activation="gelu_exact",
        gated=False,
    ),
    "stretched": TransformerConfig(
        vocab_size=V,
        num_layers=2,
        embed_dim=D,
        num_heads=N,
        qk_norm=True,
        rope=RopeConfig(1000.0, "yarn", factor=2.0, original_length=20, attention_factor=1.3),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_models_of_ours_go_out_too(name, tmp_path):
    ours = LanguageModel(OWN[name], jax.random.key(0))
    ours = jax.tree.map(
        lambda x: x + 0.15 * jax.random.normal(jax.random.key(x.size), x.shape), ours
    )
    save_pretrained(tmp_path, ours)
    assert_same_logits(read_by_them(tmp_path), ours)
