from __future__ import annotations

import numpy as np
import pytest

from onnxq.calib.feeds import Dim, InputInfo
from onnxq.calib.layouts import has_layout, layout_of, permuted, transposed
from onnxq.errors import DataError


def info(*shape: Dim) -> InputInfo:
    return InputInfo("x", np.float32, shape)


@pytest.mark.parametrize(
    ("shape", "layout", "sure"),
    [
        (("N", 3, 224, 224), "NCHW", True),
        ((1, 1, "H", "W"), "NCHW", True),
        (("N", 224, 224, 3), "NHWC", True),
        (("N", "H", "W", 1), "NHWC", True),
        ((1, 32, 32, 3), "NHWC", True),
        ((1, 3, 224, 3), "NCHW", False),
        ((1, 1, 28, 1), "NCHW", False),
        ((1, 4, 8, 8), "NCHW", False),
        (("N", "C", "H", "W"), "NCHW", False),
        ((1, 8, 8, 4), "NCHW", False),
    ],
)
def test_the_layout_is_decided_by_the_shape(shape: tuple[Dim, ...], layout: str, sure: bool) -> None:
    found = layout_of(info(*shape))
    assert (found.layout, found.sure) == (layout, sure)
    other = "NHWC" if layout == "NCHW" else "NCHW"
    told = layout_of(info(*shape), other)
    assert (told.layout, told.sure) == (other, True)


def test_the_reason_names_what_decided() -> None:
    assert layout_of(info(1, 32, 32, 3)).reason == "its last dimension is 3, its second is not 1 or 3"
    assert layout_of(info(1, 3, 8, 8)).reason == "its second dimension is 3"


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 8, 8, 8), None])
def test_only_four_dimensions_have_a_layout(shape: tuple[int, ...] | None) -> None:
    odd = InputInfo("x", np.float32, shape)
    assert not has_layout(odd)
    with pytest.raises(DataError, match=r"input 'x' is float32.* a layout is about 4 dimensions"):
        layout_of(odd)


def test_transposing_there_and_back() -> None:
    x = np.arange(120).reshape(2, 3, 4, 5)
    last = transposed(x, "NCHW", "NHWC")
    assert last.shape == permuted(x.shape, "NCHW", "NHWC") == (2, 4, 5, 3)
    assert last[1, 2, 3, 0] == x[1, 0, 2, 3]
    back = transposed(last, "NHWC", "NCHW")
    assert back.shape == permuted(last.shape, "NHWC", "NCHW") == (2, 3, 4, 5)
    np.testing.assert_array_equal(back, x)
    assert transposed(x, "NHWC", "NHWC") is x
