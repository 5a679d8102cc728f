"""Calibration on several processes or machines: a map-reduce over shards of the samples on dask.distributed.

    with Workers.open(2) as workers:
        onnxq.quantize("model.onnx", "images/", workers=workers)

The result has the same bits as without workers, however many there are: shards are cut by the data alone, run the
batches that would be run here, and are put together in their order. A shard whose worker is lost goes to another one.
dask moves Python objects between processes with pickle, so a scheduler must be one's own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onnxq.calib.engine import Collector, Part
from onnxq.calib.feeds import Feed
from onnxq.calib.local_workers import START, Processes, dask_distributed
from onnxq.calib.readers import CheckedReader, Reader
from onnxq.calib.shards import Job, Outcome, Shard, digest_of, run_shard, shards_in, shards_of
from onnxq.errors import CalibrationError, OnnxqError
from onnxq.observers import Observed
from onnxq.runtime import thread_count

if TYPE_CHECKING:
    from typing_extensions import Self

    from onnxq.stats import TensorStats

REACH = 15.0
"""Seconds that a scheduler may take to answer."""
PATIENCE = 60.0
"""Seconds without a single worker after which nothing more is waited for."""
TRIES = 3
"""How often a shard is sent out again after what it needs was lost with the workers that had it."""
_TICK = 1.0
_AHEAD = 2
"""Shards on their way for every thread of the workers."""

Where = int | str
"""How many workers to start here, or the address of a scheduler such as ``tcp://host:8786``."""


class _Uneven(Exception):  # noqa: N818 - it never leaves this module
    """Samples differ in shape, so that nobody but a reader of all of them knows where batches begin."""


class Workers:
    """Workers of dask.distributed.

    Args:
        client: dask's own client.
        local: What was started for it here; None where somebody else has.
    """

    def __init__(self, client: Any, local: Processes | None = None) -> None:  # noqa: ANN401 - dask has no types
        self._client = client
        self._local = local
        self._empty_since: float | None = None

    @classmethod
    def open(cls, where: Where, *, threads: int = 0) -> Workers:
        """Start workers here, or find those of a scheduler.

        Args:
            where: How many to start, or a scheduler's address.
            threads: Threads of each worker that is started; 0 shares the cores among them.

        Raises:
            OnnxqError: If dask is not installed, the scheduler cannot be reached, or there is no worker.
        """
        distributed = dask_distributed()
        if isinstance(where, str):
            local, address = None, where
        elif where < 1:
            raise OnnxqError(f"workers: {where}; give 1 or more, or the address of a scheduler")
        else:
            local = Processes.start(where, threads or max(1, thread_count(0) // where))
            address = local.cluster.scheduler_address
        with contextlib.ExitStack() as undo:
            if local is not None:
                undo.callback(local.close)
            try:
                client = distributed.Client(address, timeout=REACH, set_as_default=False)
            except (OSError, ValueError) as err:
                raise OnnxqError(f"no scheduler answers at {address}: {err or type(err).__name__}") from err
            undo.callback(client.close)
            found = cls(client, local)
            found.wait_for_one(address)
            undo.pop_all()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go; those that were started here end."""
        self._client.close()
        if self._local is not None:
            self._local.close()

    def wait_for_one(self, address: str) -> None:
        """Wait until there is a worker.

        Args:
            address: Of the scheduler, for messages.

        Raises:
            OnnxqError: If none comes.
        """
        end = time.monotonic() + START
        while not self._client.nthreads():
            self._check_local()
            if time.monotonic() > end:
                raise OnnxqError(f"the scheduler at {address} has no workers; start one: dask worker {address}")
            with contextlib.suppress(TimeoutError, dask_distributed().TimeoutError):
                self._client.wait_for_workers(1, timeout=_TICK)

    def collect(self, collector: Collector, job: Job, reader: Reader) -> dict[str, TensorStats]:
        """Measure all samples; the same as ``collector.run(reader)``.

        Args:
            collector: What would do it here; says which batches there are.
            job: The same for workers.
            reader: The data.

        Raises:
            CalibrationError: If a tensor holds NaN or infinity, there are no samples, an observer does not merge, or
                workers fail.
            DataError: If a feed does not fit the model, or a worker cannot read it.
        """
        if isinstance(reader, CheckedReader) and not collector.as_given:
            shards = _shards_read_there(collector, reader)
            if shards is not None:
                digests: list[tuple[bytes, ...]] = []
                notes: dict[str, None] = {}
                with contextlib.suppress(_Uneven):
                    found = collector.total(self._parts(collector, job, shards, digests, notes))
                    reader.adopt(digest_of(digests), tuple(notes))
                    return found
        return collector.total(self._parts(collector, job, shards_of(collector.batches(reader)), [], {}))

    def _parts(
        self,
        collector: Collector,
        job: Job,
        shards: Iterable[Shard],
        digests: list[tuple[bytes, ...]],
        notes: dict[str, None],
    ) -> Iterator[Part]:
        requests = {point.tensor: point.observers for point in job.points}
        for shard, outcome in self._outcomes(job, shards):
            if outcome.bad is not None:
                raise collector.blame(outcome.bad)
            if outcome.error is not None:
                kind, text = outcome.error
                raise kind(text if shard.reader is None else f"{text} (on a worker: {_SHARED})")
            if outcome.uneven or outcome.part is None:
                raise _Uneven
            digests.append(outcome.digests)
            notes.update(dict.fromkeys(outcome.notes))
            part = outcome.part
            observed = {
                name: tuple(Observed(name, r, o.observer) for r, o in zip(requests[name], seen, strict=True))
                for name, seen in part.observed.items()
            }
            if collector.on_samples is not None:
                collector.on_samples(part.samples)
            yield Part(part.samples, part.stats, part.sums, observed)

    def _outcomes(self, job: Job, shards: Iterable[Shard]) -> Iterator[tuple[Shard, Outcome]]:
        """What became of the shards, in their order; some are always on their way."""
        ahead = max(2, _AHEAD * sum(self._client.nthreads().values()))
        sent = _Sent(self, self._client, job)
        waiting: deque[tuple[Shard, Any]] = deque()
        try:
            for shard in shards:
                waiting.append((shard, sent.submit(shard)))
                if len(waiting) >= ahead:
                    yield waiting[0][0], sent.result(*waiting.popleft())
            while waiting:
                yield waiting[0][0], sent.result(*waiting.popleft())
        finally:
            self._client.cancel([future for _, future in waiting])

    def check(self) -> None:
        """Find out whether there is anything to wait for.

        Raises:
            CalibrationError: If no worker is left, or the scheduler is gone.
        """
        self._check_local()
        if self._client.status not in ("running", "connecting"):
            raise CalibrationError("the scheduler is gone; calibrate again")
        if self._client.status == "running" and self._client.nthreads():
            self._empty_since = None
            return
        now = time.monotonic()
        self._empty_since = self._empty_since or now
        if now - self._empty_since > PATIENCE:
            raise CalibrationError(f"no worker is left for {PATIENCE:.0f} s; start workers and calibrate again")

    def _check_local(self) -> None:
        if self._local is not None and (words := self._local.dead()):
            raise CalibrationError(f"all workers have ended: {words}; with less memory than they need, use fewer")


@contextlib.contextmanager
def opened(workers: Workers | Where | None, *, threads: int = 0) -> Iterator[Workers | None]:
    """Workers for a while: those that are open stay so, others end.

    Args:
        workers: Open ones, or what `Workers.open` takes; None for none.
        threads: See `Workers.open`.

    Raises:
        OnnxqError: See `Workers.open`.
    """
    if workers is None or isinstance(workers, Workers):
        yield workers
        return
    with Workers.open(workers, threads=threads) as own:
        yield own


_SHARED = (
    "workers read the files themselves, so these must be there under the same path; or give arrays, which are sent"
)


class _State(Enum):
    RUNNING = auto()
    LOST = auto()


class _Sent:
    """A job that workers have, and its shards."""

    def __init__(self, workers: Workers, client: Any, job: Job) -> None:  # noqa: ANN401 - dask has no types
        self._workers = workers
        self._client = client
        self._job = job
        self._handle = self._scatter()

    def _scatter(self) -> Any:  # noqa: ANN401 - dask has no types
        timeouts = TimeoutError, dask_distributed().TimeoutError
        while True:
            self._workers.check()
            with contextlib.suppress(*timeouts):
                self._client.wait_for_workers(1, timeout=_TICK)
                return self._client.scatter(self._job, broadcast=True, hash=False)

    def submit(self, shard: Shard) -> Any:  # noqa: ANN401 - dask has no types
        """Send a shard out."""
        with warnings.catch_warnings():  # the samples lie in the task so that they outlive a worker
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self._client.submit(run_shard, self._handle, shard, pure=False)

    def result(self, shard: Shard, future: Any) -> Outcome:  # noqa: ANN401 - dask has no types
        """Wait for a shard, and send it out again if what it needs was lost.

        Raises:
            CalibrationError: If that does not help, or a worker fails.
        """
        for _ in range(1 + TRIES):
            found = self._wait(shard, future)
            if found is not None:
                return found
            self._workers.check()
            self._handle = self._scatter()
            future = self.submit(shard)
        raise CalibrationError(f"shard {shard.number} was lost {1 + TRIES} times; see what ends the workers")

    def _wait(self, shard: Shard, future: Any) -> Outcome | None:  # noqa: ANN401 - dask has no types
        """What became of a shard; None if what it needs was lost."""
        while (found := self._ask(shard, future)) is _State.RUNNING:
            self._workers.check()
        return found if isinstance(found, Outcome) else None

    def _ask(self, shard: Shard, future: Any) -> Outcome | _State:  # noqa: ANN401 - dask has no types
        distributed = dask_distributed()
        try:
            outcome: Outcome = future.result(timeout=_TICK)
        except (TimeoutError, distributed.TimeoutError):
            return _State.RUNNING
        except distributed.KilledWorker as err:
            raise CalibrationError(
                f"shard {shard.number} has ended several workers, probably for lack of memory; use fewer threads in a "
                "worker, or smaller samples"
            ) from err
        except _cancelled():
            return _State.LOST
        except Exception as err:
            raise CalibrationError(f"a worker failed on shard {shard.number}: {type(err).__name__}: {err}") from err
        return outcome


def _shards_read_there(collector: Collector, reader: CheckedReader) -> list[Shard] | None:
    if reader.part(0, 1) is None:
        return None
    feeds = iter(reader)
    first: Feed | None = next(feeds, None)
    if isinstance(feeds, Iterator) and hasattr(feeds, "close"):
        feeds.close()
    return None if first is None else shards_in(reader, collector.size(first), collector.inputs)


def _cancelled() -> tuple[type[BaseException], ...]:
    """What dask raises when what a task needs is gone, in all its versions."""
    return asyncio.CancelledError, concurrent.futures.CancelledError, dask_distributed().CancelledError
