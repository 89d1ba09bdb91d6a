"""Adapters of PEFT on models of transformers: the same logits with ours, and ours with theirs."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.interop.adapters import AdapterError, load_adapter, save_adapter
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.models.lora import add_lora, is_adapter, merge_lora
from genai_jax.nn.lora import LoraConfig
from genai_jax.paths import map_named

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
    pytest.importorskip("peft", reason="parity needs the extra [parity]")
import peft
import torch
import transformers

V, L, T = 61, 2, 20
TOKENS = np.random.default_rng(0).integers(0, V, (2, T))
SHAPES = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=L, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=L,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "gemma": lambda: transformers.Gemma3TextConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=L,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}
ALL = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "llama": "all-linear",
    "gemma": ["q_proj", "v_proj", "down_proj"],
}
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {},
}
PATTERNS = {
    "gpt2": {"rank_pattern": {"mlp.c_proj": 2}, "alpha_pattern": {"c_attn": 5}},
    "llama": {"rank_pattern": {"q_proj": 2, "model.layers.0.mlp.up_proj": 5}, "use_rslora": True},
    "gemma": {
        "rank_pattern": {"^model.layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"q_proj": 3},
    },
}
pytestmark = [
    # Conv1D is what GPT-2 has; what else transformers and PEFT find deprecated in each other.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


forward = jax.jit(lambda model, tokens: model(tokens))


def our_logits(model):
    return np.asarray(forward(model, jnp.asarray(TOKENS, jnp.int32)))


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module", params=SHAPES)
def base(request, tmp_path_factory):
    """The name of a family, and a folder with a model of theirs whose parameters are random."""
    torch.manual_seed(0)
    settings = SHAPES[request.param]()
    settings._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, folder


def read(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_their_adapters_give_their_logits(base, kind, tmp_path):
    name, folder = base
    options = {"r": 4, "lora_alpha": 10, "target_modules": ALL[name], "task_type": "CAUSAL_LM"}
    options |= PATTERNS[name] if kind == "patterns" else KINDS[kind]
    theirs = peft.get_peft_model(read(folder), peft.LoraConfig(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    expected = their_logits(theirs)
    source = PretrainedFolder(folder)
    plain = source.load()
    assert np.abs(our_logits(plain) - expected).max() > 0.1 * np.abs(expected).max()
    assert_same(our_logits(load_adapter(tmp_path, plain, base=str(folder))), expected)
    stacked = source.load(source.abstract(dataclasses.replace(source.config, layers="scanned")))
    if kind == "patterns" and name != "gpt2":  # layers differ
        with pytest.raises(AdapterError, match="Hold the layers unrolled"):
            load_adapter(tmp_path, stacked)
        stacked = plain
    adapted = load_adapter(tmp_path, stacked)
    assert_same(our_logits(adapted), expected)
    assert_same(our_logits(merge_lora(adapted)), expected)
    # What was theirs goes out as theirs: the same tensors, of GPT-2's one module, too.
    save_adapter(tmp_path / "again", adapted, base=str(folder))
    one, two = (
        peft.utils.load_peft_weights(str(path), device="cpu")
        for path in (tmp_path, tmp_path / "again")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


OURS = {
    "lora": LoraConfig(rank=3, alpha=7.5),
    "two": LoraConfig(rank=3, targets=("query", "value"), rslora=True),
    "rslora": LoraConfig(rank=2, rslora=True),
    "dora": LoraConfig(rank=2, targets=("key", "up"), dora=True),
}


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("lora", "unrolled"), ("two", "scanned"), ("rslora", "scanned"), ("dora", "unrolled")],
)
def test_our_adapters_give_our_logits_there(base, kind, layers, tmp_path):
    _, folder = base
    source = PretrainedFolder(folder)
    plain = source.load(source.abstract(dataclasses.replace(source.config, layers=layers)))
    model = add_lora(plain, OURS[kind], jax.random.key(0))
    rng = np.random.default_rng(2)
    model = map_named(
        lambda name, x: (
            x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype) if is_adapter(name) else x
        ),
        model,
    )
    expected = our_logits(model)
    assert np.abs(our_logits(plain) - expected).max() > 0.05 * np.abs(expected).max()
    save_adapter(tmp_path, model, base=str(folder))
    theirs = peft.PeftModel.from_pretrained(read(folder), tmp_path)
    assert_same(their_logits(theirs), expected)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["use_dora"] == OURS[kind].dora and said["use_rslora"] == OURS[kind].rslora
    again = load_adapter(tmp_path, plain)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(x, y)
