from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calib.chunks import ContentDigest, head, rechunk, samples, take
from onnxq.calib.feeds import Batching, Feed, InputInfo, batching, check_feed
from onnxq.errors import DataError

X = InputInfo("x", np.float32, ("N", 3))


def info(name: str, *shape: int | str | None, dtype: type = np.float32) -> InputInfo:
    return InputInfo(name, dtype, shape)


def rows(count: int, start: int = 0) -> Feed:
    return {"x": np.arange(start, start + count, dtype=np.float32)[:, None].repeat(3, 1)}


def split(total: int, sizes: Sequence[int]) -> list[Feed]:
    feeds, start = [], 0
    while start < total:
        size = min(sizes[len(feeds) % len(sizes)], total - start)
        feeds.append(rows(size, start))
        start += size
    return feeds


# which axis is the batch


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([info("x", "N", 3)], Batching(frozenset("x"))),
        ([info("x", None, 3), info("y", "M")], Batching(frozenset("xy"))),
        ([info("x", 1, 3), info("y", 1)], Batching(frozenset("xy"), 1)),
        ([info("x", 8, 3)], Batching(frozenset("x"), 8)),
        ([InputInfo("x", np.float32, None)], Batching(frozenset("x"))),
        ([info("x", "N", 3), info("rate")], Batching(frozenset("x"))),
        ([info("x", "N", 3), info("anchors", 5, 4)], Batching(frozenset("x"))),
        ([info("x", "N", 576), info("state", 2, "N", 128)], Batching()),
        ([info("tokens", "N", "T"), info("positions", "T")], Batching()),
        ([info("x", 1, 3), info("sizes", 2)], Batching()),
        ([info("rate")], Batching()),
    ],
)
def test_batching(inputs: list[InputInfo], expected: Batching) -> None:
    assert batching(inputs) == expected


# checking a feed


def test_a_good_feed_is_passed_through_without_a_copy() -> None:
    feed = rows(4)
    checked, notes = check_feed(feed, [X], where="data")
    assert checked["x"] is feed["x"] or np.shares_memory(checked["x"], feed["x"])
    assert notes == ()


@pytest.mark.parametrize(
    ("array", "wanted", "note"),
    [
        (np.array([[0.1, 2, 3]]), np.float32, "input 'x': converted from float64 to float32"),
        (np.array([[0.1, 2, 3]], np.float16), np.float32, "input 'x': converted from float16 to float32"),
        (np.array([[1, 2, 255]], np.uint8), np.float32, "input 'x': converted from uint8 to float32"),
        (np.array([[1, -2, 3]], np.int16), np.int64, "input 'x': converted from int16 to int64"),
        (np.array([[1, -2, 3]]), np.int32, "input 'x': converted from int64 to int32"),
        (np.array([[0, 1, 1]]), np.bool_, "input 'x': converted from int64 to bool"),
        (np.array([[1, 2, 3]], ">f4"), np.float32, None),
    ],
)
def test_lossless_conversions(array: np.ndarray, wanted: type, note: str | None) -> None:
    checked, notes = check_feed({"x": array}, [info("x", "N", 3, dtype=wanted)], where="data")
    assert checked["x"].dtype == np.dtype(wanted)
    np.testing.assert_allclose(checked["x"].astype(np.float64), array.astype(np.float64), rtol=1e-6)
    assert notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    ("array", "wanted", "message"),
    [
        (np.array([[1.0, 2, 3]]), np.int64, "has type float64; the model wants int64"),
        (np.array([[1, 2, 300]]), np.uint8, "not every int64 value fits into uint8"),
        (np.array([[1, 2, -3]]), np.uint64, "not every int64 value fits into uint64"),
        (np.array([[1, 2, 2**24 + 1]]), np.float32, "not every int64 value fits into float32"),
        (np.array([[1, 2, 2**24 + 1]], np.int32), np.float32, "not every int32 value fits into float32"),
        (np.array([[1, 2, 2]]), np.bool_, "not every int64 value fits into bool"),
        (np.array([[1, 2, 1e39]]), np.float32, "too large for float32"),
        (np.array([["a", "b", "c"]]), np.float32, "has type str32; the model wants float32"),
        (np.array([[1, 2, 3j]]), np.float32, "has type complex128"),
        ([[1, 2, 3], [4]], np.float32, "cannot be read as an array"),
    ],
)
def test_conversions_that_lose_something_are_refused(array: object, wanted: type, message: str) -> None:
    with pytest.raises(DataError, match=rf"^data: input 'x': .*{message}"):
        check_feed({"x": array}, [info("x", "N", 3, dtype=wanted)], where="data")


def test_infinity_is_data_and_stays() -> None:
    mask = np.array([[0, -np.inf, np.inf]])
    checked, _ = check_feed({"x": mask}, [X], where="data")
    assert checked["x"].tolist() == [[0, -np.inf, np.inf]]


def test_names_that_do_not_fit_are_all_told() -> None:
    inputs = [info("input_ids", "N", 4), info("attention_mask", "N", 4)]
    with pytest.raises(DataError) as caught:
        check_feed({"input_id": np.zeros((1, 4)), "other": np.zeros(1)}, inputs, where="a.npz")
    text = str(caught.value)
    assert "a.npz: 'input_id' is not an input of the model; did you mean 'input_ids'?" in text
    assert "'other' is not an input" in text
    assert "inputs 'input_ids', 'attention_mask' missing" in text
    assert "'attention_mask' float32[N, 4]" in text


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"rank 1; the model wants float32\[N, 3\] \(is the axis of the samples missing\?\)"),
        ((1, 1, 1, 3), r"rank 4; the model wants float32\[N, 3\]$"),
        ((2, 4), r"has 4 at axis 1; the model wants float32\[N, 3\]"),
        ((0, 3), r"shape \(0, 3\) holds nothing"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_feed({"x": np.zeros(shape, np.float32)}, [X], where="data")


def test_a_fixed_batch_takes_any_number_of_samples() -> None:
    checked, _ = check_feed(rows(5), [info("x", 1, 3)], where="data")
    assert checked["x"].shape == (5, 3)
    with pytest.raises(DataError, match=r"has 5 at axis 0; the model wants float32\[1, 3\]"):
        check_feed({**rows(5), "y": np.zeros(2, np.float32)}, [info("x", 1, 3), info("y", 2)], where="data")


def test_nan_is_found_with_its_sample() -> None:
    feed = rows(4)
    feed["x"][2, 1] = np.nan
    with pytest.raises(DataError, match=r"a\.npz: sample 12, input 'x': NaN at \[2, 1\]"):
        check_feed(feed, [X], where="a.npz", first=10)


def test_different_numbers_of_samples_in_one_feed() -> None:
    with pytest.raises(DataError, match=r"'x' and 'y' have 4 and 3 samples along axis 0 \('N'\)"):
        check_feed({**rows(4), "y": np.zeros((3, 1), np.float32)}, [X, info("y", "N", 1)], where="data")


# fixed batches


@given(st.integers(1, 40), st.lists(st.integers(1, 17), min_size=1, max_size=4), st.integers(1, 12))
def test_batches_do_not_depend_on_how_samples_came(total: int, sizes: list[int], batch: int) -> None:
    chunks = list(rechunk(split(total, sizes), batch, [X]))
    assert [start for start, _ in chunks] == list(range(0, total, batch))
    assert all(len(feed["x"]) == batch for _, feed in chunks[:-1])
    np.testing.assert_array_equal(np.concatenate([feed["x"] for _, feed in chunks]), rows(total)["x"])


def test_a_feed_that_already_fits_is_not_copied() -> None:
    feeds = split(8, [4])
    for (_, chunk), feed in zip(rechunk(feeds, 4, [X]), feeds, strict=True):
        assert chunk is feed
    for start, chunk in rechunk(feeds, 2, [X]):
        assert np.shares_memory(chunk["x"], feeds[start // 4]["x"])


def test_a_batch_is_given_as_soon_as_it_is_full() -> None:
    pulled: list[int] = []

    def source() -> Iterator[Feed]:
        for number, feed in enumerate(split(6, [1])):
            pulled.append(number)
            yield feed

    chunks = rechunk(source(), 2, [X])
    next(chunks)
    assert pulled == [0, 1]


def test_batches_end_where_the_shape_or_a_constant_changes() -> None:
    inputs = [info("x", "N", None), info("rate", dtype=np.int64)]

    def sample(width: int, rate: int) -> Feed:
        return {"x": np.zeros((1, width), np.float32), "rate": np.array(rate)}

    sizes = [(3, 8), (3, 8), (3, 8), (5, 8), (5, 16), (5, 16)]
    chunks = list(rechunk([sample(*s) for s in sizes], 2, inputs))
    assert [(start, f["x"].shape, int(f["rate"])) for start, f in chunks] == [
        (0, (2, 3), 8),
        (2, (1, 3), 8),
        (3, (1, 5), 8),
        (4, (2, 5), 16),
    ]


def test_a_feed_that_cannot_be_split_is_one_sample() -> None:
    inputs = [info("x", "N", 4), info("state", 2, "N", 3)]
    feeds = [{"x": np.full((2, 4), i), "state": np.zeros((2, 2, 3))} for i in range(3)]
    chunks = list(rechunk(feeds, 8, inputs))
    assert [start for start, _ in chunks] == [0, 1, 2]
    assert all(chunk is feed for (_, chunk), feed in zip(chunks, feeds, strict=True))
    assert len(list(take(feeds, 2, inputs))) == 2


def test_without_the_model_axis_0_decides() -> None:
    agree = {"x": np.zeros((4, 2)), "y": np.zeros((4, 1)), "rate": np.array(1)}
    assert [f["x"].shape for f in samples([agree])] == [(1, 2)] * 4
    disagree = {"x": np.zeros((4, 2)), "y": np.zeros((3, 1))}
    assert [f["x"].shape for f in samples([disagree])] == [(4, 2)]


def test_the_models_fixed_batch_wins(caplog: pytest.LogCaptureFixture) -> None:
    chunks = list(rechunk(split(11, [3]), 32, [info("x", 4, 3)]))
    assert [(start, len(feed["x"])) for start, feed in chunks] == [(0, 4), (4, 4)]
    assert "the last 3 samples are not used: the model's batch is fixed at 4" in caplog.text
    with pytest.raises(DataError, match="batch is fixed at 4, but there are only 3 samples"):
        list(rechunk(split(3, [3]), 1, [info("x", 4, 3)]))
    assert [len(f["x"]) for f in samples(split(5, [5]), [info("x", 1, 3)])] == [1] * 5


def test_an_impossible_batch_is_refused() -> None:
    with pytest.raises(DataError, match="at least one sample, got 0"):
        list(rechunk([], 0))


@given(st.integers(0, 30), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 35))
def test_take_gives_the_first_samples(total: int, sizes: list[int], count: int) -> None:
    taken = [f["x"] for f in take(split(total, sizes), count, [X])]
    assert sum(map(len, taken)) == min(total, count)
    assert all(len(array) for array in taken)
    assert [row for array in taken for row in array[:, 0]] == list(range(min(total, count)))
    assert head(rows(5), 3, frozenset("x"))[1] == 3


# the digest


def digest(feeds: Sequence[Feed], inputs: list[InputInfo] | None = None) -> str:
    content = ContentDigest(inputs)
    for feed in feeds:
        content.add(feed)
    return content.hexdigest()


@given(st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_digest_is_independent_of_batches(total: int, sizes: list[int]) -> None:
    assert digest(split(total, sizes), [X]) == digest([rows(total)], [X])


def test_digest_is_of_names_types_shapes_and_bytes() -> None:
    base = digest([rows(2)])
    each = [hashlib.sha256(b"x|<f4|(3,)|" + np.full(3, k, "<f4").tobytes()).digest() for k in range(2)]
    assert base == hashlib.sha256(b"".join(each)).hexdigest()
    others = [
        rows(3),
        {"y": rows(2)["x"]},
        {"x": rows(2)["x"].view(np.int32)},
        {"x": rows(2)["x"].reshape(2, 3, 1)},
        rows(2, 1),
        {**rows(2), "rate": np.array(1)},
    ]
    assert len({base, *(digest([other]) for other in others)}) == 7
