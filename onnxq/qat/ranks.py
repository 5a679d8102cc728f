"""One training over one or several processes: every process has all parameters and a part of each batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from onnxq.errors import TrainingError
from onnxq.qat.overlay import Overlay
from onnxq.qat.worker_client import SessionInfo, Worker

Array = NDArray[Any]
Feed = Mapping[str, Array]
R = TypeVar("R")


class Ranks:
    """Workers that train in step.

    With one rank a step is the training runtime's own. With several, each computes the gradients of its part of the
    batch, these are averaged in the order of the ranks, weighted by the number of samples, and every rank makes the
    same step: the parameters stay bit-identical.

    Args:
        directory: The artifacts.
        count: How many ranks.
        threads: Threads of each of them.
        overlay: The training runtime.
        checkpoint: A checkpoint to begin with; by default that of the artifacts.

    Raises:
        TrainingError: If the training runtime or the artifacts cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        count: int = 1,
        *,
        threads: int = 1,
        overlay: Overlay | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        if count < 1:
            raise TrainingError(f"{count} processes cannot train; give at least 1")
        with ExitStack() as stack:
            self._workers = [stack.enter_context(Worker(overlay)) for _ in range(count)]
            self._pool = stack.enter_context(ThreadPoolExecutor(count))
            self._each(lambda worker: worker.open(directory, checkpoint, threads))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._stack.close()

    @property
    def first(self) -> Worker:
        """The rank that evaluates and saves."""
        return self._workers[0]

    @property
    def info(self) -> SessionInfo:
        """What is open."""
        return self.first.info

    def steps(self, batches: Sequence[Sequence[Feed]], rates: Sequence[float]) -> list[float]:
        """Make one step for each entry of `batches`.

        Args:
            batches: For each step the parts whose gradients are averaged; mostly one.
            rates: The learning rate of each step.

        Returns:
            The loss of each step, averaged over its samples.
        """
        if len(self._workers) == 1 and all(len(parts) == 1 for parts in batches):
            return [step.loss for step in self.first.train_steps([parts[0] for parts in batches], rates)]
        return [self._step(parts, rate) for parts, rate in zip(batches, rates, strict=True)]

    def _step(self, parts: Sequence[Feed], rate: float) -> float:
        shards = [self._shards(part) for part in parts]
        total = sum(_count(part) for part in parts)

        def gradients(rank: int) -> tuple[float, dict[str, NDArray[np.float64]]]:
            worker, loss, found = self._workers[rank], 0.0, dict[str, NDArray[np.float64]]()
            for shard, count in (s[rank] for s in shards):
                worker.reset_gradients()
                share = count / total
                loss += share * worker.accumulate(shard).loss
                for name, gradient in worker.gradients().items():
                    weighted = gradient.astype(np.float64) * share
                    found[name] = found[name] + weighted if name in found else weighted
            return loss, found

        results = list(self._pool.map(gradients, range(len(self._workers))))
        mean: dict[str, NDArray[np.float64]] = {}
        for _, found in results:
            for name, gradient in found.items():
                mean[name] = mean[name] + gradient if name in mean else gradient
        rounded = {name: gradient.astype(np.float32) for name, gradient in mean.items()}
        self._each(lambda worker: self._apply(worker, rounded, rate))
        self._share_statistics()
        return sum(loss for loss, _ in results)

    def _apply(self, worker: Worker, gradients: Mapping[str, Array], rate: float) -> None:
        worker.set_gradients(gradients)
        worker.optimizer_step(rate)
        worker.reset_gradients()

    def _share_statistics(self) -> None:
        """Give all ranks the mean of what their own batches did to running statistics."""
        names = self.info.frozen
        if not names or len(self._workers) == 1:
            return
        found = self._each(lambda worker: worker.parameters(names))
        mean = {name: np.mean([f[name].astype(np.float64) for f in found], axis=0).astype(np.float32) for name in names}
        self._each(lambda worker: worker.set_parameters(mean))

    def _shards(self, part: Feed) -> list[tuple[Feed, int]]:
        """For each rank a part of a batch and how many samples count; a rank without any computes one in vain."""
        bounds = np.linspace(0, _count(part), len(self._workers) + 1).round().astype(int)
        found: list[tuple[Feed, int]] = []
        for start, stop in pairwise(bounds):
            last = max(stop, start + 1)
            begin = min(start, _count(part) - 1)
            found.append(({name: array[begin:last] for name, array in part.items()}, int(stop - start)))
        return found

    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite parameters in all ranks."""
        self._each(lambda worker: worker.set_parameters(values))

    def parameters_of_each(self) -> list[dict[str, Array]]:
        """The parameters of every rank; they are equal."""
        return self._each(lambda worker: worker.parameters())

    def _each(self, call: Callable[[Worker], R]) -> list[R]:
        return list(self._pool.map(call, self._workers))


def _count(feed: Feed) -> int:
    return len(next(iter(feed.values())))
