"""The figures of one tensor, against numpy and against the cases in which a definition decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.report.debug_statistics import compare_values, cosine_similarity


def test_every_figure_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 7, 14)).astype(np.float32)
    a[a < -1] = 0
    b = (np.round(a * 4) / 4).clip(-0.5, 1).astype(np.float32)
    found = compare_values(a, b)
    for values, described in ((a, found.origin), (b, found.dequant)):
        ordered, n = sorted(values.ravel().tolist()), values.size
        assert described is not None
        assert (described.low, described.high) == (ordered[0], ordered[-1])
        quartiles = [ordered[int(q * n)] for q in (0.25, 0.5, 0.75)]
        assert [described.q1, described.median, described.q3] == quartiles
        assert described.mean == pytest.approx(values.mean(dtype=np.float64))
        assert described.deviation == pytest.approx(values.std(dtype=np.float64))
        assert described.sparsity == (values == 0).mean()
    assert found.clip == ((a < b.min()) | (a > b.max())).mean() > 0.1
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    assert found.cosine == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)))


def test_quartiles_are_not_interpolated() -> None:
    found = compare_values(None, np.array([3.0, 0.0, 2.0, 1.0, 5.0], np.float32)).dequant
    assert (found.q1, found.median, found.q3) == (1, 2, 3)


def test_without_an_origin_nothing_is_compared() -> None:
    found = compare_values(None, np.ones(3, np.float32))
    assert found.origin is found.clip is found.cosine is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0], [0, 0], 1),
        ([0, 0], [1, 2], 0),
        ([1, 2], [0, 0], 0),
        ([1e-5, 0], [1e-5, 0], 0),  # the product of the squares is next to nothing, each of them is not
        ([1e-9, 0], [1e-9, 0], 1),  # each of them is
        ([math.nan, 1], [1, 1], 0),
        ([math.inf, 1], [1, 1], 0),
        ([1, 2], [-2, -4], -1),
        ([3, 0], [0, 5], 0),
    ],
)
def test_cosine_similarity_at_its_edges(a: list[float], b: list[float], expected: float) -> None:
    assert cosine_similarity(np.array(a, np.float32), np.array(b, np.float32)) == pytest.approx(expected)


def test_cosine_similarity_of_many_values_is_summed_in_float64() -> None:
    a = np.full(1 << 20, 1e-3, np.float32)
    a[0] = 1e4
    assert cosine_similarity(a, a) == pytest.approx(1, abs=1e-12)
