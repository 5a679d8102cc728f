from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calib.prefetch import MOST_WORKERS, decode_workers, in_order, prefetch
from onnxq.errors import DataError


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(), max_size=20), st.integers(1, 6))
def test_prefetching_keeps_items_and_order(items: list[int], depth: int) -> None:
    assert list(prefetch(iter(items), depth)) == items


def test_prefetching_gives_what_was_ready_before_an_error() -> None:
    def failing():
        yield 1
        yield 2
        raise DataError("third is broken")

    items = prefetch(failing(), 4)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(DataError, match="third is broken"):
        next(items)


def test_prefetching_is_bounded_and_stops_when_abandoned() -> None:
    taken: list[int] = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    before = threading.active_count()
    items = prefetch(endless(), 3)
    assert next(items) == 0
    time.sleep(0.05)
    assert len(taken) <= 5
    items.close()
    assert threading.active_count() == before
    count = len(taken)
    time.sleep(0.02)
    assert len(taken) == count


def test_prefetching_closes_a_generator_it_leaves_early() -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    generator = source()  # kept, so that it is not closed for being dropped
    items = prefetch(generator, 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]


def test_the_next_items_are_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(8)]

    def source() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in prefetch(source(), 2):
        for event in made[number + 1 : number + 3]:
            assert event.wait(10)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], workers: int) -> None:
    def work(item: int) -> int:
        time.sleep(abs(item) % 3 * 1e-4)
        return item * 2

    assert list(in_order(work, items, workers)) == [item * 2 for item in items]


def test_several_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=5)
    assert list(in_order(lambda item: together.wait() >= 0, range(6), 3)) == [True] * 6


def test_one_worker_starts_no_thread_and_looks_no_item_ahead() -> None:
    taken: list[int] = []
    names: set[str] = set()

    def work(item: int) -> int:
        taken.append(item)
        names.add(threading.current_thread().name)
        return item

    results = in_order(work, range(9), 1)
    assert next(results) == 0
    assert taken == [0]
    assert names == {threading.current_thread().name}


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_in_its_place(workers: int) -> None:
    def work(item: int) -> int:
        if item == 4:
            raise DataError("item 4 is broken")
        return item

    results = in_order(work, range(9), workers)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="item 4 is broken"):
        next(results)
    assert next(results, None) is None


def test_leaving_early_is_bounded_and_leaves_no_thread() -> None:
    taken: list[int] = []
    before = threading.active_count()
    results = in_order(taken.append, range(1000), 2)
    next(results)
    results.close()
    assert len(taken) <= 5
    assert threading.active_count() == before


def test_the_number_of_workers_is_that_of_the_cores_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (3, 3), (64, MOST_WORKERS)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, n=cores: set(range(n)), raising=False)
        assert decode_workers() == workers
