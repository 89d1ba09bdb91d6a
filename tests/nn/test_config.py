import pytest

from genai_jax.nn.config import TransformerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 12, "num_kv_heads": 5}, "got 12 and 5. Choose num_kv_heads from 1, 2, 3, 4"),
        ({"embed_dim": 100, "num_heads": 12}, r"got 100 and 12.*such as 108"),
        ({"num_layers": 0}, "`num_layers` must be at least 1"),
        ({"vocab_size": -1}, "must not be negative"),
        ({"layer_pattern": ("sliding",)}, "needs `window`"),
        ({"layer_pattern": ()}, "at least one kind"),
        ({"local_theta": 1e4, "positions": "learned"}, "needs positions 'rope'"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"attention": "blocked", "attention_dropout": 0.1}, "cannot drop probabilities"),
        ({"norm": "layer", "norm_offset": 1.0}, "belongs to rms norms"),
        ({"norm": "rms", "norm_bias": True}, "belongs to layer norms"),
        ({"embed_dim": 12, "num_heads": 4}, "even head size; got 3"),
        (
            {"layer_pattern": ("sliding",), "window": 4, "causal": False},
            "A sliding layer is causal",
        ),
        (
            {"modulated": True, "norm": "layer", "norm_bias": True},
            "no parameters of their own; got `norm_bias`",
        ),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


def test_sizes_that_are_left_out_follow_from_the_others():
    config = TransformerConfig(embed_dim=64, num_heads=4, num_layers=5, window=8)
    assert (config.kv_heads, config.head_size, config.mlp_size) == (4, 16, 256)
    assert config.query_scale == 0.25
    assert config.output_std == pytest.approx(0.02 / 10**0.5)
    assert TransformerConfig(num_layers=5, modulated=True).output_std == 0.02
    pattern = TransformerConfig(
        num_layers=4, window=8, layer_pattern=("sliding", "sliding", "global")
    )
    assert pattern.layer_kinds == ("sliding", "sliding", "global", "sliding")
