"""The table of solvers: what was asked for is what is in it."""

import io

import numpy as np
import pytest
from PIL import Image

from genai_jax.evaluation.solver_report import format_solvers, measure_solvers, solvers_png


@pytest.fixture
def table():
    asked = []

    def distance(solver, steps, seed):
        asked.append((solver, steps, seed))
        return {"ddim": 100.0, "heun": 50.0}[solver] / steps + seed

    table = measure_solvers(
        distance,
        solvers=("ddim", "heun"),
        steps=(50, 5, 10),
        seeds=(0, 1, 2),
        evaluations=lambda solver, steps: steps * (2 if solver == "heun" else 1),
        real=(0.5, 0.7),
        count=360,
        reference="test",
    )
    assert len(asked) == len(set(asked)) == 2 * 3 * 3
    return table


def test_distances_are_where_they_belong(table):
    assert table.steps == (5, 10, 50)
    np.testing.assert_allclose(table.distances[0, :, 1], [21, 11, 3])
    np.testing.assert_allclose(table.distances[1, 2], [1, 2, 3])
    np.testing.assert_array_equal(table.evaluations[1], [10, 20, 100])


def test_text_says_mean_spread_count_and_reference(table):
    lines = format_solvers(table).splitlines()
    assert "3 draws of 360 images against the test split" in lines[0]
    assert "training images 0.60 ± 0.14" in lines[0]
    assert lines[1].split() == ["solver", "5", "steps", "10", "steps", "50", "steps"]
    assert " ".join(lines[3].split()) == "ddim 21.00 ± 1.00 11.00 ± 1.00 3.00 ± 1.00"


def test_plot_is_a_picture(table):
    picture = np.asarray(Image.open(io.BytesIO(solvers_png(table, title="digits"))))
    assert picture.shape[:2] == (528, 816)
    # Both curves and the line of the training images are in it.
    for colour in ((0x4C, 0x78, 0xA8), (0xE4, 0x57, 0x56), (0x33, 0x33, 0x33)):
        assert (picture[..., :3] == colour).all(axis=-1).sum() > 50


def test_a_stop_is_heard_between_draws():
    asked = []

    def check():
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_solvers(
            lambda *of: asked.append(of) or 1.0,
            solvers=("ddim",),
            steps=(1, 2, 3),
            seeds=(0,),
            evaluations=lambda solver, steps: steps,
            real=(1.0,),
            count=1,
            reference="test",
            check=check,
        )
    assert len(asked) == 2
