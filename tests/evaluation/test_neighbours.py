"""Nearest neighbours against plain loops, and where distances vanish."""

import numpy as np
import pytest

from genai_jax.evaluation import neighbours
from genai_jax.evaluation.neighbours import nearest, squared_distances


@pytest.fixture(params=[2**22, 20], ids=["one chunk", "many chunks"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(neighbours, "_CHUNK", request.param)


def points(n, seed, d=3):
    return np.random.default_rng(seed).standard_normal((n, d))


def loops(x, y):
    return np.array([[np.sum((a - b) ** 2) for b in y] for a in x])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_squared_distances_are_those_of_loops(offset):
    x, y = points(9, 0) + offset, points(11, 1) + offset
    np.testing.assert_allclose(squared_distances(x, y), loops(x, y), rtol=1e-7)


def test_what_nearly_coincides_keeps_its_digits():
    x = points(6, 0) + 1e3
    y = x + 1e-6 * points(6, 1)
    np.testing.assert_allclose(np.diag(squared_distances(x, y)), np.diag(loops(x, y)), rtol=1e-12)
    assert not np.diag(squared_distances(x, x.copy())).any()


@pytest.mark.parametrize("k", [1, 4, 11])
def test_neighbours_in_another_set(k):
    x, y = points(9, 0), points(11, 1)
    found, distances = nearest(x, y, k), np.sqrt(loops(x, y))
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :k], rtol=1e-9)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1)[:, :k])


def test_no_point_is_its_own_neighbour_but_its_double_is():
    x = points(7, 2)
    x[6] = x[1]
    found, distances = nearest(x, k=2), np.sqrt(loops(x, x))
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :2], rtol=1e-9)
    assert found.indices[1, 0] == 6
    assert found.indices[6, 0] == 1
    assert found.distances[1, 0] == 0


def test_more_neighbours_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"got 3 and 2\."):
        nearest(points(3, 0), k=3)
    with pytest.raises(ValueError, match=r"got 4 and 3\."):
        nearest(points(5, 0), points(3, 0), 4)
