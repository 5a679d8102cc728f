"""The compiled kernels equal plain numpy, to the bit."""

import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.algos import _jit, kernels
from onnxq.stats import BINS, Histogram, exponent_for

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 70), elements=FLOATS)


@given(ARRAYS)
def test_min_max(x):
    low, high, finite = kernels.min_max(x)
    assert (low, high, finite) == (x.min(), x.max(), True)
    if low == 0:
        assert math.copysign(1, low) == 1


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, np.float32(np.uint32(0x7F800001).view(np.float32))])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("where", [0, 17, 4095])
def test_min_max_finds_what_is_not_finite(bad, sign, where):
    x = np.full((64, 64), sign, np.float32)
    assert kernels.min_max(x)[2]
    x.reshape(-1)[where] = bad
    assert not kernels.min_max(x)[2]


def test_min_max_extremes():
    big = np.finfo(np.float32).max
    assert kernels.min_max(np.array([-big, 1e-45, big], np.float32)) == (-big, big, True)
    assert kernels.min_max(np.array([], np.float32)) == (math.inf, -math.inf, True)
    assert kernels.min_max(np.array([-0.0], np.float32)) == (0.0, 0.0, True)


def counted(x, exponent):
    counts = np.zeros(BINS, np.int64)
    kernels.count_into(x, counts, exponent)
    return counts


@given(ARRAYS, st.integers(0, 30))
def test_small_count_equals_reference(x, extra):
    exponent = min(exponent_for(float(np.abs(x).max())) + extra, 128)
    np.testing.assert_array_equal(counted(x, exponent), Histogram.from_array(x, exponent=exponent).counts)


@given(ARRAYS, st.integers(0, 30))
def test_large_count_equals_reference(x, extra):
    exponent = min(exponent_for(float(np.abs(x).max())) + extra, 128)
    repeats = 20011 // x.size + 1
    wide = np.tile(x, repeats)
    lanes = kernels.make_lanes()
    counts = np.zeros(BINS, np.int64)
    kernels.count_into(wide, counts, exponent, lanes=lanes)
    np.testing.assert_array_equal(counts, Histogram.from_array(x, exponent=exponent).counts * repeats)
    assert not lanes.any()


def test_count_of_noise_adds_to_what_is_there():
    x = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    exponent = exponent_for(float(np.abs(x).max()))
    counts = np.ones(BINS, np.int64)
    kernels.count_into(x.reshape(-1, 1), counts, exponent)
    np.testing.assert_array_equal(counts - 1, Histogram.from_array(x, exponent=exponent).counts)


@pytest.mark.parametrize("count", [10, 40_000])
def test_count_stays_inside_the_table_whatever_comes(count):
    x = np.resize(np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 7.0], np.float32), count)
    assert counted(x, 0).sum() == count


def test_underflow_does_not_move_a_tiny_negative():
    tiny = np.full(20_000, -1e-45, np.float32)
    assert counted(tiny, 100)[BINS // 2 - 1] == tiny.size


@pytest.mark.parametrize("shape", [(3, 5, 37), (2, 7, 1), (1, 1, 8), (2, 3, 0)])
def test_channels(shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = np.abs(x).max(axis=(0, 2), initial=0)
    np.testing.assert_array_equal(kernels.channel_absmax(x), expected)
    total = kernels.channel_sum(x)
    np.testing.assert_allclose(total, x.sum(axis=(0, 2), dtype=np.float64), rtol=1e-12, atol=1e-12)
    again = np.zeros(shape[1])
    for sample in x:
        kernels.channel_sum(sample[None], again)
    np.testing.assert_array_equal(total, again)


def test_channel_absmax_does_not_hide_nan():
    x = np.ones((1, 2, 9), np.float32)
    x[0, 1, 3] = np.nan
    assert np.isnan(kernels.channel_absmax(x)[1])


def test_read_only_and_unaligned_arrays_are_taken(tmp_path):
    x = np.arange(10, dtype=np.float32)
    path = tmp_path / "x.bin"
    path.write_bytes(b"\0" + x.tobytes())
    mapped = np.memmap(path, np.float32, "r", offset=1, shape=(10,))
    assert not mapped.flags.aligned
    assert kernels.min_max(mapped) == (0, 9, True)
    assert counted(mapped, 4).sum() == 10
    x.flags.writeable = False
    assert kernels.channel_absmax(x.reshape(1, 2, 5)).tolist() == [4, 9]


def test_kernels_work_where_nothing_can_be_cached(monkeypatch):
    real = numba.njit
    calls = []

    def njit(*args, **kwargs):
        calls.append(kwargs.get("cache", False))
        if kwargs.get("cache"):
            raise RuntimeError("cannot cache function")
        return real(*args, **kwargs)

    monkeypatch.setattr(numba, "njit", njit)

    @_jit.kernel(_jit.f64(_jit.f64))
    def twice(x):
        return 2 * x

    assert twice(2.0) == 4.0
    assert calls == [True, False]


def test_unusable_cache_directory_does_not_stop_the_import(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "from onnxq.algos import kernels; import numpy as np; print(kernels.min_max(np.ones(3, np.float32)))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(blocked / "below")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1.0, 1.0, True)", done.stderr
