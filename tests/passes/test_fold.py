"""Factors on the other side of a Reshape, against what numpy does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes._fold import fitted, reshaped
from tests.graphs import graph_of

SHAPES = [
    (2, 3, 4, 5), (2, 12, 5), (2, 60), (6, 4, 5), (2, 3, 20), (2, 1, 3, 4, 5, 1), (24, 5), (120,), (2, 4, 3, 5),
    (40, 3),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SHAPES), st.sampled_from(SHAPES), st.data())
def test_factors_move_with_the_numbers(outer, inner, data):
    axes = data.draw(st.sets(st.integers(0, len(outer) - 1)))
    shape = [n if i in axes else 1 for i, n in enumerate(outer)]
    factors = np.random.default_rng(0).uniform(1, 2, shape)
    found = reshaped(factors, outer, inner)
    assert found is not None
    assert all(f in (1, n) for f, n in zip(found.shape, inner, strict=True))
    np.testing.assert_array_equal(
        np.broadcast_to(found, inner), np.broadcast_to(factors, outer).reshape(inner)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outer", "inner", "axis", "expected"),
    [
        (("N", 6), ("N", 2, 3), 1, (1, 2, 3)),  # heads
        (("N", "L", 6), ("N", "L", 2, 3), 2, (1, 1, 2, 3)),
        (("N", 6, "H", "W"), ("N", 6, "L"), 1, (1, 6, 1)),  # unknown lengths behind the channels
        (("N", 6, "L"), ("N", 6, "H", "W"), 1, (1, 6, 1, 1)),
        (("N", 6), ("N", 6, 1, 1), 1, (1, 6, 1, 1)),
        (("A", 6, "H", "W"), ("B", 6, "L"), 1, None),  # what is in front differs
        ((None, 6, "L"), (None, 6, "H", "W"), 1, None),
        (("N", "C", "L"), ("N", "C", "H", "W"), 2, None),
        (("N", 6), ("N", "C"), 1, None),
    ],
)
def test_shapes_that_are_not_known(outer, inner, axis, expected):
    factors = np.arange(1.0, 7.0).reshape([6 if i == axis else 1 for i in range(len(outer))])
    found = reshaped(factors, outer, inner)
    assert (None if found is None else found.shape) == expected
    if found is not None:
        np.testing.assert_array_equal(found.reshape(-1), factors.reshape(-1))


def test_equal_factors_need_no_shape():
    found = reshaped(np.full((1, 1, 1), 3.0), ("N", "A", "B"), ("M", "C"))
    assert found is not None
    assert found.tolist() == [[3.0]]


def test_factors_that_would_become_large_are_not_followed():
    wide = (2, 3, 1024, 1024)
    factors = np.arange(1.0, 1 + math.prod(wide[1:2])).reshape(1, 3, 1, 1)
    assert reshaped(factors, wide, (2, 3 * 1024 * 1024)) is None
    assert reshaped(factors, wide, (2, 3, 1024 * 1024)).shape == (1, 3, 1)


def test_broadcast_inputs():
    graph = graph_of(
        """g (float[N,1,5] a, float[5] b, float[N,4,5] c, float[N,4,L] d) => (float[N,4,5] y) {
            u = Add(a, b) v = Add(u, c) y = Add(v, d) }"""
    )
    factors = np.arange(1.0, 6.0).reshape(1, 1, 5)
    shapes = {name: fitted(graph, factors, graph.tensor(name)) for name in "abcd"}
    assert [None if f is None else f.shape for f in shapes.values()] == [(1, 1, 5), (5,), (1, 1, 5), None]
    rows = np.arange(1.0, 5.0).reshape(1, 4, 1)
    shapes = {name: fitted(graph, rows, graph.tensor(name)) for name in "abcd"}
    assert [None if f is None else f.shape for f in shapes.values()] == [None, None, (1, 4, 1), (1, 4, 1)]
