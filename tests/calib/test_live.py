from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calib.feeds import Feed, InputInfo
from onnxq.calib.readers import (
    CheckedReader,
    IterableReader,
    RandomReader,
    Reader,
    ReaderFromOrt,
    as_reader,
    open_data,
    rechunk,
)
from onnxq.errors import DataError

X = InputInfo("x", np.float32, ("N", 3))
RATE = InputInfo("rate", np.int64, ())


def table(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def joined(reader: Reader, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in reader])


def test_anything_becomes_a_reader(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=table(6))
    feeds = [{"x": table(6)[:4]}, {"x": table(6)[4:]}]
    sources = [
        tmp_path / "d.npz",
        str(tmp_path / "d.npz"),
        table(6),
        {"x": table(6)},
        feeds,
        iter(feeds),
        lambda: iter(feeds),
        lambda: feeds,
        [table(6)[:1], table(6)[1:]],
        [(table(6),)][0],
        OrtLike(feeds),
        Rewindable(feeds),
        IterableReader(feeds),
        open_data(tmp_path / "d.npz", [X]),
    ]
    digests = set()
    for source in sources:
        reader = as_reader(source, [X])
        for _ in range(2):
            np.testing.assert_array_equal(joined(reader), table(6))
        assert isinstance(reader, CheckedReader)
        digests.add(reader.digest())
        limited = as_reader(reader, [X], samples=5)
        np.testing.assert_array_equal(joined(limited), table(6)[:5])
    assert len(digests) == 1


class OrtLike:
    """As the simplest CalibrationDataReader: one pass only."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.left = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.left, None)


class Rewindable(OrtLike):
    rewound = 0

    def rewind(self) -> None:
        self.rewound += 1
        self.left = iter(self.feeds)


def test_rewind_is_called_before_every_pass_but_the_first() -> None:
    source = Rewindable([{"x": table(1)}, {"x": table(1)}])
    reader = ReaderFromOrt(source, [X], limit=0)
    assert (len(list(reader)), source.rewound) == (2, 0)
    next(iter(reader))
    assert (len(list(reader)), source.rewound) == (2, 2)
    assert reader.describe() == "feeds from Rewindable"


def one_pass(count: int) -> Iterator[Feed]:
    buffer = np.empty((1, 3), np.float32)
    for number in range(count):
        buffer[:] = number
        yield {"x": buffer}


def test_a_one_shot_iterator_is_recorded_while_it_runs() -> None:
    reader = IterableReader(one_pass(4))
    first = [float(feed["x"][0, 0]) for feed in itertools.islice(reader, 2)]
    assert first == [0, 1]
    assert joined(reader)[:, 0].tolist() == [0, 1, 2, 3]
    assert joined(reader)[:, 0].tolist() == [0, 1, 2, 3]
    assert len(reader.digest()) == 64


def test_a_large_one_shot_iterator_is_refused_the_second_time() -> None:
    reader = IterableReader(one_pass(4), limit=30)
    kept = [weakref.ref(feed["x"]) for feed in reader]
    assert [ref() for ref in kept] == [None] * 4
    with pytest.raises(DataError, match="used only once, hold more than 0 MB and are needed again; pass a list"):
        list(reader)


def test_a_source_may_reuse_its_buffers() -> None:
    ((_, feed),) = rechunk(IterableReader(lambda: one_pass(3)), 3, [X])
    assert feed["x"][:, 0].tolist() == [0, 1, 2]


def test_feeds_without_names() -> None:
    inputs = [X, RATE]
    (feed,) = IterableReader([(table(2), 7)], inputs)
    assert (feed["x"].shape, int(feed["rate"])) == ((2, 3), 7)
    with pytest.raises(DataError, match="found list of 3 as a feed; must be a mapping or 2 arrays for x, rate"):
        list(IterableReader([[1, 2, 3]], inputs))
    with pytest.raises(DataError, match="found int of 1 as a feed; must be a mapping"):
        list(IterableReader([1]))
    with pytest.raises(DataError, match=r"^input 'x': cannot be read as an array"):
        list(IterableReader([{"x": [[1], [2, 3]]}]))
    with pytest.raises(DataError, match="int is no source of feeds"):
        as_reader(5, [X])
    with pytest.raises(DataError, match="one array is given, but the model has 2 inputs"):
        as_reader(table(2), inputs)


def test_a_bad_feed_is_named_by_its_number() -> None:
    with pytest.raises(DataError, match="feed 1 of the data: 'y' is not an input"):
        list(as_reader([{"x": table(1)}, {"y": table(1)}], [X]))


def test_conversions_are_noted_once() -> None:
    reader = as_reader([{"x": table(1).astype(np.float64)}] * 3, [X])
    assert {feed["x"].dtype for feed in reader} == {np.dtype(np.float32)}
    assert reader.notes == ("input 'x': converted from float64 to float32",)


@given(st.integers(1, 12), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 14)))
def test_digest_is_of_the_samples_in_use(total: int, size: int, limit: int | None) -> None:
    feeds = [{"x": table(total)[start : start + size]} for start in range(0, total, size)]
    used = table(total)[:limit].astype(np.float64)
    assert as_reader(feeds, [X], samples=limit).digest() == as_reader(used, [X]).digest()


def test_digest_needs_no_pass_of_its_own() -> None:
    passes = []

    def source() -> Iterator[Feed]:
        passes.append(1)
        return one_pass(3)

    reader = as_reader(source, [X])
    next(iter(reader))
    assert len(list(reader)) == 3
    assert len(reader.digest()) == 64
    assert len(passes) == 2


# random data


def test_random_samples_depend_on_seed_and_number_only() -> None:
    inputs = [X, InputInfo("ids", np.int64, (1, 6)), InputInfo("mask", np.bool_, ("N", 2))]
    few, many = list(RandomReader(inputs, 2, seed=3)), list(RandomReader(inputs, 5, seed=3))
    for a, b in zip(few, many, strict=False):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert (many[0]["x"].shape, many[0]["x"].dtype) == ((1, 3), np.float32)
    assert set(np.concatenate([f["ids"] for f in many]).ravel().tolist()) == {0, 1}
    assert not np.array_equal(many[0]["x"], many[1]["x"])
    assert RandomReader(inputs, 2, seed=4).digest() != RandomReader(inputs, 2, seed=3).digest()
    alone = next(iter(RandomReader(inputs[1:], 1, seed=3)))
    np.testing.assert_array_equal(alone["ids"], few[0]["ids"])
    checked = as_reader(RandomReader(inputs, 5), inputs)
    assert len(list(checked)) == checked.len_hint() == 5


def test_random_data_need_sizes_for_free_dimensions() -> None:
    image = InputInfo("image", np.float32, ("N", 3, "H", None))
    mask = InputInfo("mask", np.float32, ("N", "H"))
    with pytest.raises(DataError, match=r"size for image\[2\] \(H\), image\[3\] \(unnamed\), mask\[1\] \(H\)"):
        RandomReader([image, mask], 1)
    feed = next(iter(RandomReader([image, mask], 1, sizes={"H": 8, "image[3]": 4})))
    assert (feed["image"].shape, feed["mask"].shape) == ((1, 3, 8, 4), (1, 8))
    feed = next(iter(RandomReader([mask], 1, sizes={"H": 8, "N": 2})))
    assert feed["mask"].shape == (2, 8)
    with pytest.raises(DataError, match="'Q' is no dimension"):
        RandomReader([X], 1, sizes={"Q": 8})
    with pytest.raises(DataError, match="'x' has no known rank"):
        RandomReader([InputInfo("x", np.float32, None)], 1)
