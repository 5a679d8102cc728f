"""Two neighbouring weights of one sign never exceed 128 codes together, whatever the weights are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos.affine import params_from_range, quantize
from onnxq.algos.weight import pair_sums
from onnxq.algos.weight.pair_sums import largest_pair_sums, safe_scale
from onnxq.spec import PerAxis, PerTensor, QType, QuantParams, QuantSpec

NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 127 / 128]),
    st.floats(-1e3, 1e3, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6),
)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=NUMBERS)


def worst_pair(codes: np.ndarray) -> int:
    """Largest magnitude of a sum of codes 2k and 2k + 1 of one sign; rows are outputs; plain Python."""
    worst = 0
    for row in codes.tolist():
        for k in range(0, len(row) - 1, 2):
            a, b = row[k], row[k + 1]
            worst = max(worst, abs(a + b) if a * b > 0 else 0)
    return worst


def test_pairs_are_neighbours_of_one_sign() -> None:
    w = np.array([[1, 2, 4, 8], [1, -2, -4, -8], [0, 0, 0, 9], [3, 5, 3, 5]], np.float32)
    assert largest_pair_sums(w, outputs_first=True).tolist() == [12, 12, 9, 8]
    assert largest_pair_sums(w, outputs_first=False).tolist() == [3, 5, 4, 14]
    # the first and the second row are added, then the third and the fourth; not the second and the third
    assert largest_pair_sums(np.array([[0], [5], [5], [0]], np.float32), outputs_first=False).tolist() == [5]


def test_an_odd_one_has_no_neighbour() -> None:
    w = np.array([[1, 1, 7], [-1, -1, -9]], np.float32)
    assert largest_pair_sums(w, outputs_first=True).tolist() == [7, 9]
    assert largest_pair_sums(w.T, outputs_first=False).tolist() == [7, 9]


@given(MATRICES)
def test_both_layouts_agree(w: np.ndarray) -> None:
    np.testing.assert_array_equal(
        largest_pair_sums(w, outputs_first=True), largest_pair_sums(np.ascontiguousarray(w.T), outputs_first=False)
    )


@given(MATRICES)
def test_pieces_do_not_cut_a_pair(w: np.ndarray) -> None:
    wide = np.concatenate([w, -w, w * 2])
    expected = [largest_pair_sums(wide, outputs_first=first) for first in (True, False)]
    rows = pair_sums._ROWS
    try:
        pair_sums._ROWS = 1
        found = [largest_pair_sums(wide, outputs_first=first) for first in (True, False)]
    finally:
        pair_sums._ROWS = rows
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


@given(MATRICES, st.booleans(), st.booleans())
def test_no_pair_of_codes_exceeds_128(w: np.ndarray, per_tensor: bool, narrow: bool) -> None:
    spec = QuantSpec(QType.INT8, PerTensor() if per_tensor else PerAxis(0), narrow=narrow)
    axis = None if per_tensor else 1
    plain = params_from_range(w.min(axis=axis), w.max(axis=axis), spec)
    scale = safe_scale(plain.scale, largest_pair_sums(w, outputs_first=True))
    codes = quantize(w, QuantParams(spec, scale, plain.zero_point))
    assert worst_pair(codes) <= 128
    assert (scale >= plain.scale).all()


@pytest.mark.parametrize("value", [1.0, -1.0, 3e-5])
def test_two_equal_weights_use_half_of_the_codes(value: float) -> None:
    spec = QuantSpec(QType.INT8, PerAxis(0), narrow=True)
    w = np.full((1, 4), value, np.float32)
    plain = params_from_range(w.min(axis=1), w.max(axis=1), spec)
    assert worst_pair(quantize(w, plain)) == 254
    safe = QuantParams(spec, safe_scale(plain.scale, largest_pair_sums(w, outputs_first=True)), plain.zero_point)
    assert worst_pair(quantize(w, safe)) in (126, 128)


def test_only_channels_in_need_grow() -> None:
    scale = np.array([0.1, 0.1, 1e-6], np.float32)
    found = safe_scale(scale, np.array([12.69, 12.8, 0], np.float32))
    assert found.dtype == np.float32
    assert found[0] == scale[0]
    assert found[1] == pytest.approx(12.8 / 127)
    assert found[2] == scale[2]
    one = safe_scale(np.float32(0.1), np.array([12.69, 25.4], np.float32))
    assert one.shape == ()
    assert one == pytest.approx(0.2)


def test_memmaps_are_taken(tmp_path) -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "w.bin"
    path.write_bytes(w.tobytes())
    mapped = np.memmap(path, np.float32, "r", shape=(3, 4))
    np.testing.assert_array_equal(largest_pair_sums(mapped, outputs_first=True), [5, 13, 21])
    assert largest_pair_sums(w[:, :0], outputs_first=True).tolist() == [0, 0, 0]
