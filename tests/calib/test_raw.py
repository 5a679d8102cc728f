from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.calib.feeds import Dim, InputInfo
from onnxq.calib.layouts import InputLayout, Layout
from onnxq.calib.raw import RawFormat
from onnxq.errors import DataError


def stored(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return path


def raw(*shape: Dim, dtype: type = np.float32, **more: object) -> RawFormat:
    return RawFormat(InputInfo("x", dtype, shape), **more)


def values(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize(("found", "wanted"), [("NHWC", "NCHW"), ("NCHW", "NHWC"), ("NHWC", "NHWC")])
def test_numbers_are_transposed_to_the_models_layout(tmp_path: Path, batch: Dim, found: Layout, wanted: Layout) -> None:
    first = values(2, 3, 4, 5)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    arrays = {"NCHW": first, "NHWC": last}
    layout = InputLayout(wanted, "", sure=True)
    form = raw(batch, *arrays[wanted].shape[1:], layout=found, model=layout, exact=True)
    result = form.load(stored(tmp_path / "a.bin", arrays[found]))
    np.testing.assert_array_equal(result, arrays[wanted])
    assert result.flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [
        (("N", 3), 6, (2, 3)),
        (("N", "T"), 6, (1, 6)),
        ((1, "T", 2), 6, (1, 3, 2)),
        (("N", 2, "T"), 8, (1, 2, 4)),
        ((), 1, ()),
        ((2, 3), 6, (2, 3)),
    ],
)
def test_one_free_dimension_is_as_long_as_the_file_says(
    tmp_path: Path, shape: tuple[Dim, ...], size: int, found: tuple[int, ...]
) -> None:
    path = stored(tmp_path / "a.bin", values(size))
    for exact in (True, False):
        np.testing.assert_array_equal(raw(*shape, exact=exact).load(path), values(*found))


def test_a_free_height_in_another_layout(tmp_path: Path) -> None:
    last = values(1, 6, 5, 3)
    form = raw("N", 3, "H", 5, layout="NHWC", model=InputLayout("NCHW", "", sure=True))
    np.testing.assert_array_equal(form.load(stored(tmp_path / "a.bin", last)), last.transpose(0, 3, 1, 2))


def test_a_shape_that_is_said_decides_free_dimensions(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.bin", values(24))
    with pytest.raises(DataError, match=r"holds 96 bytes, but dimensions \[1, 2\] of input 'x' .* are all free"):
        raw("N", "H", "W").load(path)
    np.testing.assert_array_equal(raw("N", "H", "W", shape=(2, 3, 4)).load(path), values(2, 3, 4))


def test_several_batches_in_a_file_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.bin", values(4, 3))
    np.testing.assert_array_equal(raw(2, 3).load(path), values(4, 3))
    with pytest.raises(DataError, match=r"a\.bin: holds 48 bytes \(12 float32 numbers\); .* takes 24 bytes, shape 2x3"):
        raw(2, 3, exact=True).load(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_size_that_does_not_fit_is_told_with_the_right_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"holds {len(content)} bytes .*float32\[1, 3\]\) takes 12 bytes, shape 1x3"):
        raw(1, 3, exact=True).load(path)
    with pytest.raises(DataError, match=r"takes a multiple of 12 bytes, shape \?x3"):
        raw("N", 3, exact=True).load(path)
    with pytest.raises(DataError, match=r"takes 4 bytes, shape scalar"):
        raw(exact=True).load(path)


def test_other_types_and_missing_files(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.bin", np.arange(6, dtype=np.int64))
    np.testing.assert_array_equal(raw("N", 3, dtype=np.int64).load(path), np.arange(6).reshape(2, 3))
    with pytest.raises(DataError, match=r"none\.bin: cannot be read: No such file"):
        raw("N", 3).load(tmp_path / "none.bin")
