"""Pictures of a run."""

import json

import matplotlib.image
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.training.plots import draw_losses, smooth


@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(0, 9), st.integers(0, 40))
def test_smoothing_keeps_straight_lines(offset, slope, reach, more):
    line = offset + slope * np.arange(2 * reach + 1 + more)
    inner = line[reach : len(line) - reach]
    np.testing.assert_allclose(smooth(line, 2 * reach + 1), inner, atol=1e-9)


def test_smoothing_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).standard_normal(9)
    expected = [values[i : i + 5].mean() for i in range(5)]
    np.testing.assert_allclose(smooth(values, 5), expected, rtol=1e-12)
    np.testing.assert_array_equal(smooth(values, 1), values)


def draw(tmp_path, records):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "plots" / "loss.png"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in records))
    draw_losses(metrics, picture, title="run")
    return matplotlib.image.imread(picture)


def test_two_panels_where_bits_were_measured_else_one(tmp_path):
    train = [{"step": s, "train/loss": 5 / s} for s in range(1, 60)]
    narrow = draw(tmp_path, train)
    wide = draw(tmp_path, [*train, {"step": 59, "val/loss": 0.1, "val/bits_per_byte": 0.2}])
    assert wide.shape[1] == 2 * narrow.shape[1]
    for picture in (narrow, wide):
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50  # it is drawn


def test_a_run_without_steps_is_drawn_empty(tmp_path):
    assert draw(tmp_path, []).ndim == 3
