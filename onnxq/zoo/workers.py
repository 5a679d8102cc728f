"""Entries of a zoo measured in processes of their own: a crash or a hang is one entry's, and several run at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.runtime import thread_count
from onnxq.zoo.matrix import Entry
from onnxq.zoo.measuring import Bench, Outcome

if TYPE_CHECKING:
    from typing_extensions import Self

Told = Callable[[Outcome], None]
"""Is told what became of an entry, as soon as that is known."""
_PATIENCE = 5.0
"""Seconds a process gets to end by itself."""


def measure_all(entries: Sequence[Entry], *, jobs: int, folder: Path, threads: int, told: Told) -> tuple[Outcome, ...]:
    """Measure all entries.

    Args:
        entries: The entries.
        jobs: How many processes measure at once; 0 measures in this one.
        folder: Where quantized models are written.
        threads: Threads in all, divided among the processes; 0 for all cores.
        told: Is told of every outcome.

    Returns:
        One outcome per entry, in their order. It depends neither on `jobs` nor on `threads`, but for times.
    """
    found: dict[str, Outcome] = {}

    def keep(outcome: Outcome) -> None:
        found[outcome.name] = outcome
        told(outcome)

    if jobs == 0:
        bench = Bench(folder, threads)
        for entry in entries:
            keep(bench.measure(entry))
    else:
        for entry in entries:
            if entry.skipped:
                keep(Outcome(entry.model, entry.recipe, "skipped", entry.skipped))
        waiting = [entry for entry in entries if not entry.skipped]
        jobs = min(jobs, len(waiting))
        if jobs:
            with _Crew(jobs, folder, max(1, thread_count(threads) // jobs)) as crew:
                crew.measure(waiting, keep)
    return tuple(found[entry.name] for entry in entries)


class _Worker:
    """One process and what it is doing.

    Attributes:
        model: Name of the model it has seen last; it keeps what its entries share.
        entry: What it measures; None where it waits.
        started: When it began with it.
    """

    def __init__(self, context: SpawnContext, folder: Path, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, folder, threads), daemon=True)
        with _uninterrupted():
            self.process.start()
        theirs.close()
        self.model = ""
        self.entry: Entry | None = None
        self.started = 0.0

    def give(self, entry: Entry) -> None:
        """Let it measure an entry."""
        self.model, self.entry, self.started = entry.model, entry, time.monotonic()
        try:
            self.connection.send(entry)
        except BrokenPipeError:
            return  # it has died; whoever waits for it sees that

    @property
    def seconds_left(self) -> float | None:
        """Until the entry has taken too long; None where it may take any time."""
        if self.entry is None or self.entry.settings.timeout is None:
            return None
        return max(0.0, self.started + self.entry.settings.timeout - time.monotonic())

    def outcome(self) -> Outcome | None:
        """What became of the entry; None where that is not known yet."""
        entry = self.entry
        if entry is None:
            return None
        seconds = time.monotonic() - self.started
        if self.connection.poll():
            try:
                found = self.connection.recv()
            except (EOFError, OSError):
                return _failed(entry, f"the process that measured it {self._end()}", seconds)
            if isinstance(found, Outcome):
                self.entry = None
                return found
        if not self.process.is_alive() and not self.connection.poll():
            return _failed(entry, f"the process that measured it {self._end()}", seconds)
        if self.seconds_left == 0.0:
            self.stop()
            return _failed(entry, f"took longer than {entry.settings.timeout:g} seconds and was stopped", seconds)
        return None

    def _end(self) -> str:
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"ended with exit code {code}"

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.entry is None and self.process.is_alive():
            try:
                self.connection.send(None)
                self.process.join(_PATIENCE)
            except OSError:
                pass
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Crew:
    """The processes; all of them have ended when it is left, however that happens."""

    def __init__(self, jobs: int, folder: Path, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._folder = folder
        self._threads = threads
        self._jobs = jobs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def measure(self, entries: Iterable[Entry], told: Told) -> None:
        """Measure entries; those of one model by one process as far as that is not slower."""
        waiting = list(entries)
        while waiting or any(worker.entry for worker in self._workers):
            while waiting and (worker := self._free()) is not None:
                worker.give(self._next(worker, waiting))
            busy = [worker for worker in self._workers if worker.entry is not None]
            limits = [left for worker in busy if (left := worker.seconds_left) is not None]
            signs = [sign for worker in busy for sign in (worker.connection, worker.process.sentinel)]
            wait(signs, min(limits, default=None))
            for worker in busy:
                outcome = worker.outcome()
                if outcome is None:
                    continue
                if worker.entry is not None:  # it has died with it, or was stopped
                    self._workers.remove(worker)
                    worker.entry = None
                    worker.process.join(_PATIENCE)
                    worker.connection.close()
                told(outcome)

    def _free(self) -> _Worker | None:
        """A process that has nothing to do, a new one if there may be one more."""
        for worker in self._workers:
            if worker.entry is None:
                return worker
        if len(self._workers) == self._jobs:
            return None
        worker = _Worker(self._context, self._folder, self._threads)
        self._workers.append(worker)
        return worker

    def _next(self, worker: _Worker, waiting: list[Entry]) -> Entry:
        """Take what it should do next: of the model it knows, else of one that no other process is at."""
        taken = {other.model for other in self._workers if other is not worker and other.entry is not None}
        order = (lambda e: e.model == worker.model, lambda e: e.model not in taken, lambda e: True)
        place = next(i for fits in order for i, entry in enumerate(waiting) if fits(entry))
        return waiting.pop(place)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """What is started in it never sees Ctrl-C, which goes to all processes of a terminal: this one ends the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _failed(entry: Entry, message: str, seconds: float) -> Outcome:
    return Outcome(entry.model, entry.recipe, "failed", message, seconds=seconds)


def _serve(connection: Connection, folder: Path, threads: int) -> None:
    """What a process does: measure what it is given until it is given nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it cannot be blocked
    os.dup2(2, 1)  # what a user's function prints is not part of the results on standard output
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = Bench(folder, threads)
    try:
        while isinstance(entry := connection.recv(), Entry):
            connection.send(bench.measure(entry))
    except (EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    """Leave no process behind that nobody waits for, also where the one that started it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
