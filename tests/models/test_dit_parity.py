"""Images of other people's DiT: diffusers computes them, and ours with the same weights."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.dit import DiT, DiTConfig, dit_trunk
from genai_jax.paths import map_named

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("torch", reason="parity needs the extra [parity]")
    pytest.importorskip("diffusers", reason="parity needs the extra [parity]")
import torch
from diffusers import DiTTransformer2DModel

B, SIZE, C, P, L, N, D, CLASSES = 3, 12, 4, 2, 3, 4, 32, 7

NAMES = {
    "attention/query": "attn1.to_q",
    "attention/key": "attn1.to_k",
    "attention/value": "attn1.to_v",
    "attention/output": "attn1.to_out.0",
    "mlp/up": "ff.net.0.proj",
    "mlp/down": "ff.net.2",
    "modulation/linear": "norm1.linear",
    "patch_in": "pos_embed.proj",
    "level_in": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "level_out": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "final_modulation/linear": "proj_out_1",
    "patch_out": "proj_out_2",
}
CLASS_TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"


def view(module, kernel):
    """Turn a kernel of PyTorch, [out, in], into ours, [in, out], up to its shape."""
    if module == "patch_in":
        return kernel.transpose(2, 3, 1, 0)  # a convolution: [out, channels, height, width]
    if module == "level_in":  # cosines stand before sines there
        return np.concatenate(np.split(kernel.T, 2)[::-1])
    return kernel.T


def find(name):
    """Find their name of our parameter."""
    path = name.removeprefix("layers/")
    layer = ""
    if path != name:
        number, path = path.split("/", 1)
        layer = f"transformer_blocks.{number}."
    module, kind = path.rsplit("/", 1)
    return module, f"{layer}{NAMES[module]}.{'weight' if kind == 'kernel' else kind}"


@pytest.fixture(scope="module", params=[1, 2], ids=["fixed variance", "learned variance"])
def pair(request):
    """Their model with random weights everywhere, and ours with the same."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=N,
        attention_head_dim=D // N,
        in_channels=C,
        out_channels=C * request.param,
        num_layers=L,
        sample_size=SIZE,
        patch_size=P,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    used = set()

    def fill(name, leaf):
        if name == "class_embedding/table":
            used.add(CLASS_TABLE)
            return jnp.asarray(tensors[CLASS_TABLE])
        module, their_name = find(name)
        used.add(their_name)
        x = tensors[their_name]
        return jnp.asarray((view(module, x) if name.endswith("kernel") else x).reshape(leaf.shape))

    config = DiTConfig(
        image_size=SIZE,
        channels=C,
        patch_size=P,
        transformer=dit_trunk(L, D, N),
        num_classes=CLASSES,
        learned_variance=request.param == 2,
    )
    shapes = jax.eval_shape(lambda: DiT(config, jax.random.key(0)))
    ours = map_named(fill, shapes)
    # Each of their blocks embeds level and class anew, in a checkpoint by the same weights.
    first = "transformer_blocks.0.norm1.emb."
    for name, parameter in theirs.named_parameters():
        if ".norm1.emb." in name:
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(tensors[first + name.split(".norm1.emb.")[1]]))
    unused = {name for name in tensors.keys() - used if ".norm1.emb." not in name}
    assert unused <= {"pos_embed.pos_embed"}  # fixed
    return theirs, ours


def test_images_are_theirs(pair):
    theirs, ours = pair
    x = np.random.default_rng(0).standard_normal((B, SIZE, SIZE, C)).astype(np.float32)
    level, classes = np.array([0, 37, 999]), np.array([0, CLASSES, 3])
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
            timestep=torch.from_numpy(level),
            class_labels=torch.from_numpy(classes),
        ).sample.numpy()
    found = ours(jnp.asarray(x), jnp.asarray(level, jnp.float32), jnp.asarray(classes))
    assert np.std(expected) > 0.3  # they say something
    np.testing.assert_allclose(
        found, expected.transpose(0, 2, 3, 1), atol=1e-4 * np.abs(expected).max()
    )
