"""Calibration by workers: the same bits as without, lost workers, and what cannot be done there."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

import onnxq
from onnxq.calib import distributed
from onnxq.calib.distributed import Workers, opened
from onnxq.calib.engine import Collector
from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.calib.readers import CheckedReader, as_reader
from onnxq.calib.reductions import Reductions
from onnxq.calib.shards import MOST, SAMPLES, Job, Shard, run_shard, shards_in, shards_of
from onnxq.errors import CalibrationError, DataError, OnnxqError
from onnxq.observers import ObserverRequest
from onnxq.recipe import ImagePreprocess
from onnxq.runtime import make_session
from tests.graphs import build, normal

dask = pytest.importorskip("distributed", reason="calibration by workers needs dask: pip install -e '.[distributed]'")
# what dask and its parts deprecate is not for the tests of onnxq, and its threads would stumble over it
pytestmark = pytest.mark.filterwarnings("ignore")

NET = """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] r) {
    c = Conv<pads=[1, 1, 1, 1]>(x, W)
    r = Relu(c)
}"""
EVERYTHING = StatKind.HISTOGRAM | StatKind.CHANNEL_ABSMAX | StatKind.CHANNEL_SUM
SINGLY = StatKind.HISTOGRAM | StatKind.QUANTILES | StatKind.PEAKS


class Peaks:
    """The mean of the largest magnitudes: exact as long as few of them are added."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def observe(self, x: Any) -> None:
        self.sum += float(np.abs(x).max())
        self.count += 1

    def merge(self, other: Peaks) -> Peaks:
        both = Peaks()
        both.sum, both.count = self.sum + other.sum, self.count + other.count
        return both

    def range(self) -> tuple[float, float]:
        return -self.sum / self.count, self.sum / self.count


class Moving(Peaks):
    """A moving average, which is none of the averages of two halves."""

    def observe(self, x: Any) -> None:
        peak = float(np.abs(x).max())
        self.sum = peak if not self.count else 0.9 * self.sum + 0.1 * peak
        self.count = 1

    def merge(self, other: Peaks) -> Moving:
        both = Moving()
        both.sum, both.count = (self.sum + other.sum) / 2, 1
        return both


class Alone(Peaks):
    def merge(self, other: Peaks) -> Peaks:
        raise NotImplementedError("this one sees everything or nothing")


def local(count: int) -> Any:
    """A scheduler and workers that are threads of this process."""
    return dask.LocalCluster(
        n_workers=count, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0,
        protocol="tcp://", host="127.0.0.1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    with local(2) as made:
        yield made


@pytest.fixture
def two(cluster):
    with Workers.open(cluster.scheduler_address) as workers:
        yield workers


def net() -> onnx.ModelProto:
    return build(NET, W=normal(4, 3, 3, 3))


def setup(
    kinds: dict[str, StatKind], model: onnx.ModelProto | None = None, *, batch: int = 0, **points: Any
) -> tuple[Collector, Job]:
    """The same task for this process and for workers."""
    model = model or net()
    wanted = [StatisticPoint(name, kind, **points) for name, kind in kinds.items()]
    content = onnx.ModelProto()
    content.CopyFrom(model)
    del content.graph.output[:]
    content.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kinds if name != "x")
    session = make_session(content, threads=1)
    inputs = session.inputs
    job = Job(content.SerializeToString(), tuple(wanted), inputs, Reductions())
    return Collector(session, wanted, inputs, batch=batch), job


def bits(found: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (
            s.low, s.high, s.count, s.channel_count, s.quantiles, s.peaks,
            None if s.histogram is None else (s.histogram.exponent, s.histogram.counts.tobytes()),
            None if s.channel_absmax is None else s.channel_absmax.tobytes(),
            None if s.channel_sum is None else s.channel_sum.tobytes(),
            None if s.observed is None else [o.find_range() for o in s.observed],
        )
        for name, s in found.items()
    }  # fmt: skip


def images(folder: Path, count: int, size: Any = lambda k: (6, 6)) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 255, (*size(k), 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), pixels)
    return folder


def reader_of(data: Any, job: Job, **options: Any) -> CheckedReader:
    return as_reader(data, job.inputs, preprocess=ImagePreprocess(), **options)


def again_and_again(action: Any) -> None:
    """Until it fails: it may be done before a worker that is told to go has gone."""
    for _ in range(1000):
        action()


# ---- shards ------------------------------------------------------------------------------------


def test_shards_end_where_batches_do_and_hold_enough_samples():
    batches = [(start, {"x": np.zeros((6, 1))}) for start in range(0, 60, 6)]
    found = list(shards_of(batches))
    assert [[start for start, _ in shard.batches] for shard in found] == [[0, 6, 12], [18, 24, 30], [36, 42, 48], [54]]
    assert [shard.number for shard in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "batch"), [(1, 4), (SAMPLES, 4), (50, 8), (100, 32), (40 * SAMPLES * MOST // 39, 1)])
def test_shards_that_are_read_there_hold_whole_batches_and_all_samples(tmp_path, count, batch):
    _, job = setup({"c": EVERYTHING})
    reader = reader_of(images(tmp_path / "i", min(count, 3)), job)
    reader.len_hint = lambda: count  # type: ignore[method-assign]
    found = shards_in(reader, batch, job.inputs)
    assert found is not None
    starts = [shard.start for shard in found]
    sizes = {b - a for a, b in itertools.pairwise(starts)}
    assert starts[0] == 0
    assert len(sizes) <= 1
    assert all(size % batch == 0 and size >= SAMPLES for size in sizes)
    assert len(found) <= max(MOST, -(-count // SAMPLES) if count < MOST * SAMPLES else MOST)
    assert [shard.last for shard in found] == [False] * (len(found) - 1) + [True]


def test_arrays_and_archives_are_sent_and_images_are_read_there(tmp_path):
    _, job = setup({"c": EVERYTHING})
    np.savez(tmp_path / "d.npz", x=normal(20, 3, 6, 6))
    assert shards_in(reader_of(tmp_path / "d.npz", job), 4, job.inputs) is None
    assert shards_in(reader_of({"x": normal(20, 3, 6, 6)}, job), 4, job.inputs) is None
    assert shards_in(reader_of(images(tmp_path / "i", 20), job), 4, job.inputs) is not None


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EVERYTHING, SINGLY, StatKind.RANGE], ids=["sums", "singly", "range"])
@pytest.mark.parametrize("data", ["arrays", "feeds", "images"])
def test_statistics_have_the_same_bits_as_without_workers(two, tmp_path, kind, data):
    shares = (0.01, 0.99) if kind is SINGLY else ()
    collector, job = setup({"c": kind, "x": kind}, batch=3, shares=shares)  # several batches in a shard
    sizes = 10.0 ** np.random.default_rng(0).uniform(-9, 9, (90, 1, 1, 1))  # sums of such numbers are rounded
    x = (normal(90, 3, 6, 6) * sizes).astype(np.float32)
    given = {
        "arrays": lambda: {"x": x},
        "feeds": lambda: [{"x": x[k : k + 7]} for k in range(0, 90, 7)],
        "images": lambda: images(tmp_path / "i", 50),
    }[data]()
    here, there = reader_of(given, job), reader_of(given, job)
    wanted = collector.run(here)
    assert bits(two.collect(collector, job, there)) == bits(wanted)
    assert there.digest() == here.digest()


def test_samples_that_differ_in_shape_are_batched_as_without_workers(two, tmp_path):
    text = NET.replace("6, 6] x", "H, V] x").replace("6, 6] r", "H, V] r")
    collector, job = setup({"c": EVERYTHING}, build(text, W=normal(4, 3, 3, 3)))
    folder = images(tmp_path / "i", 40, lambda k: (6, 6) if k % 5 else (7, 6))
    assert bits(two.collect(collector, job, reader_of(folder, job))) == bits(collector.run(reader_of(folder, job)))


def test_only_the_samples_that_are_asked_for_are_used(two, tmp_path):
    collector, job = setup({"c": EVERYTHING})
    folder = images(tmp_path / "i", 40)
    found = two.collect(collector, job, reader_of(folder, job, samples=21))
    assert bits(found) == bits(collector.run(reader_of(folder, job, samples=21)))
    assert found["c"].count == 21 * 4 * 36


def test_progress_is_told_in_order(two):
    collector, job = setup({"c": EVERYTHING})
    told: list[int] = []
    collector.on_samples = told.append
    two.collect(collector, job, reader_of({"x": normal(70, 3, 6, 6)}, job))
    assert told == sorted(told)
    assert told[-1] == 70


@pytest.mark.parametrize("method", ["minmax", "kl", "avg", {"name": "custom", "observer": Peaks}], ids=str)
def test_models_are_the_same_byte_for_byte(cluster, tmp_path, method):
    data = {"x": np.rint(normal(40, 3, 6, 6, scale=9))}
    recipe = {"activations": {"method": method}}
    model = net()
    found = set()
    for number, workers in enumerate((None, cluster.scheduler_address)):
        result = onnxq.quantize(model, data, recipe=recipe, threads=1, workers=workers)
        result.save(tmp_path / f"{number}.onnx")
        found.add(hashlib.sha256((tmp_path / f"{number}.onnx").read_bytes()).hexdigest())
    assert len(found) == 1


# ---- observers of the user's -------------------------------------------------------------------


def observed(maker: Any, count: int = 40) -> tuple[Collector, Job, CheckedReader]:
    request = ObserverRequest.of(maker, {})
    collector, job = setup({"c": StatKind.OBSERVED}, observers=(request,))
    return collector, job, reader_of({"x": np.rint(normal(count, 3, 6, 6, scale=9))}, job)


def test_observers_are_merged_in_the_order_of_the_data(two):
    class Diary:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def observe(self, x: Any) -> None:
            self.seen.append(float(x.max()))

        def merge(self, other: Diary) -> Diary:
            both = Diary()
            both.seen = self.seen + other.seen
            return both

        def range(self) -> tuple[float, float]:
            return 0.0, max(self.seen)

    collector, job, reader = observed(Diary)
    (mine,) = collector.run(reader)["c"].observed or ()
    (theirs,) = two.collect(collector, job, reader)["c"].observed or ()
    assert len(mine.observer.seen) == 40  # type: ignore[attr-defined]
    assert theirs.observer.seen == mine.observer.seen  # type: ignore[attr-defined]
    assert theirs.request == mine.request


def test_batches_of_the_data_are_shown_to_observers_as_they_are(two):
    request = ObserverRequest.of(Peaks, {}, batches=True)
    collector, job = setup({"c": StatKind.OBSERVED}, observers=(request,))
    data = [{"x": np.rint(normal(n, 3, 6, 6, seed=n, scale=9))} for n in (3, 20, 1, 9, 12)]
    found = two.collect(collector, job, reader_of(data, job))["c"].observed or ()
    assert found[0].observer.count == 5  # type: ignore[attr-defined]
    assert found[0].find_range() == (collector.run(reader_of(data, job))["c"].observed or ())[0].find_range()


@pytest.mark.parametrize(
    ("maker", "problem"),
    [
        (Moving, r"tensor 'c': observer .*Moving does not merge exactly: two that have seen half of some samples"),
        (Alone, r"merge of observer .*Alone failed: NotImplementedError: this one sees everything or nothing; workers"),
    ],
    ids=["inexact", "never"],
)
def test_observers_that_do_not_merge_are_refused_and_it_is_said_what_to_do(two, maker, problem):
    collector, job, reader = observed(maker)
    with pytest.raises(CalibrationError, match=problem) as caught:
        two.collect(collector, job, reader)
    assert "Mend merge, or calibrate without workers" in str(caught.value)
    assert collector.run(reader)["c"].observed  # without workers it is fine


# ---- bad input ---------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_told_as_without_workers(two):
    collector, job = setup({"c": EVERYTHING})
    collector.explain = lambda feed: f"; {int(np.isinf(feed['x']).sum())} in the feed"
    x = normal(60, 3, 6, 6)
    x[45, 0, 0, 0] = np.inf
    texts = []
    for run in (collector.run, lambda r: two.collect(collector, job, r)):
        with pytest.raises(CalibrationError, match=r"tensor 'c' holds NaN or infinity; 1 in the feed") as caught:
            run(reader_of({"x": x}, job))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_a_file_that_a_worker_cannot_read_is_told_with_what_to_do(two, tmp_path):
    collector, job = setup({"c": EVERYTHING})
    folder = images(tmp_path / "i", 40)
    reader = reader_of(folder, job)
    (folder / "33.png").unlink()
    with pytest.raises(DataError, match=r"33\.png: cannot be read: .* \(on a worker: .* the same path; or give arrays"):
        two.collect(collector, job, reader)


def test_a_worker_with_another_version_is_refused():
    _, job = setup({"c": EVERYTHING})
    job.version = "0.0.1"
    outcome = run_shard(job, Shard(0, ((0, {"x": normal(4, 3, 6, 6)}),)))
    assert outcome.error is not None
    assert outcome.error[0] is CalibrationError
    assert "0.0.1 calibrates; install the same version everywhere" in outcome.error[1]


def test_a_feed_that_does_not_fit_is_refused_here(two):
    collector, job = setup({"c": EVERYTHING})
    with pytest.raises(DataError, match="the model wants"):
        two.collect(collector, job, reader_of({"x": normal(20, 3, 7, 6)}, job))


def test_an_error_that_nobody_thought_of_names_the_shard(two, monkeypatch):
    collector, job = setup({"c": EVERYTHING})

    def broken(job: Job, shard: Shard) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(distributed, "run_shard", broken)
    with pytest.raises(CalibrationError, match=r"a worker failed on shard 0: ZeroDivisionError: oh"):
        two.collect(collector, job, reader_of({"x": normal(20, 3, 6, 6)}, job))


def test_no_sample_is_refused(two):
    collector, job = setup({"c": EVERYTHING})
    with pytest.raises(CalibrationError, match="not a single sample"):
        two.collect(collector, job, [])  # type: ignore[arg-type]


# ---- workers that come and go ------------------------------------------------------------------


def test_the_shard_of_a_lost_worker_goes_to_another_one():
    """One of two workers is closed when the first shard is done."""
    collector, job = setup({"c": EVERYTHING})
    data = {"x": normal(200, 3, 6, 6)}
    wanted = bits(collector.run(reader_of(data, job)))
    with local(2) as cluster:
        victims = [cluster.workers[0]]
        collector.on_samples = lambda done: cluster.sync(victims.pop().close) if victims else None
        with Workers.open(cluster.scheduler_address) as workers:
            assert bits(workers.collect(collector, job, reader_of(data, job))) == wanted
    assert victims == []


def test_a_job_that_was_lost_with_the_only_worker_is_sent_again():
    collector, job = setup({"c": EVERYTHING})
    data = {"x": normal(200, 3, 6, 6)}
    wanted = bits(collector.run(reader_of(data, job)))
    with local(1) as cluster:
        victims = [cluster.workers[0]]

        def lose(done: int) -> None:
            if victims:
                cluster.sync(victims.pop().close)
                cluster.scale(2)

        collector.on_samples = lose
        with Workers.open(cluster.scheduler_address) as workers:
            assert bits(workers.collect(collector, job, reader_of(data, job))) == wanted
    assert victims == []


def test_when_no_worker_is_left_it_is_said_after_a_while(monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0.0)
    monkeypatch.setattr(distributed, "_TICK", 0.05)
    collector, job = setup({"c": EVERYTHING})
    with local(1) as cluster:
        collector.on_samples = lambda done: cluster.scale(0)
        with Workers.open(cluster.scheduler_address) as workers:
            reader = reader_of({"x": normal(100, 3, 6, 6)}, job)
            with pytest.raises(CalibrationError, match="no worker is left"):
                again_and_again(lambda: workers.collect(collector, job, reader))


@pytest.mark.parametrize("where", [0, -1])
def test_a_number_of_workers_must_be_positive(where):
    with pytest.raises(OnnxqError, match="give 1 or more, or the address of a scheduler"):
        Workers.open(where)


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "REACH", 0.2)
    with pytest.raises(OnnxqError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"):
        Workers.open("tcp://127.0.0.1:1")


@pytest.mark.parametrize("address", ["nonsense://here", "tcp://"])
def test_what_is_no_address_is_told(monkeypatch, address):
    monkeypatch.setattr(distributed, "REACH", 0.2)
    with pytest.raises(OnnxqError, match="no scheduler answers at"):
        Workers.open(address)


def test_a_scheduler_without_workers_is_told(monkeypatch):
    monkeypatch.setattr(distributed, "START", 0.1)
    with (
        local(0) as cluster,
        pytest.raises(OnnxqError, match=r"has no workers; start one: dask worker tcp://"),
    ):
        Workers.open(cluster.scheduler_address)


def test_open_workers_stay_open_and_none_is_none(two):
    with opened(two) as same:
        assert same is two
    assert two._client.status == "running"
    with opened(None) as nothing:
        assert nothing is None


def test_without_dask_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OnnxqError, match=r"workers need dask: pip install 'onnxq\[distributed\]'"):
        Workers.open(2)


SOURCE = """
class Largest:
    def __init__(self, factor=1.0):
        self.factor, self.largest = factor, 0.0

    def observe(self, x):
        self.largest = max(self.largest, float(abs(x).max()))

    def merge(self, other):
        both = Largest(self.factor)
        both.largest = max(self.largest, other.largest)
        return both

    def range(self):
        return -self.factor * self.largest, self.factor * self.largest
"""


def test_processes_of_their_own_find_the_observer_in_its_file_and_one_may_die(tmp_path, monkeypatch):
    """All that goes over the wire, with a worker that is killed when the first shard is done."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE, encoding="utf-8")
    request = ObserverRequest.of("mine.py:Largest", {"factor": 0.5})
    points = {"observers": (request,)}
    collector, job = setup({"c": StatKind.OBSERVED | EVERYTHING}, **points)
    folder = images(tmp_path / "i", 150)
    wanted = collector.run(reader_of(folder, job))
    with Workers.open(2, threads=1) as workers:
        processes = workers._local.running  # type: ignore[union-attr]
        collector.on_samples = lambda done: processes[0].kill()
        found = workers.collect(collector, job, reader_of(folder, job))
        assert bits(found) == bits(wanted)
        collector.on_samples = lambda done: processes[1].kill()
        with pytest.raises(CalibrationError, match="all workers have ended"):
            again_and_again(lambda: workers.collect(collector, job, reader_of(folder, job)))
    assert all(process.poll() is not None for process in processes)
