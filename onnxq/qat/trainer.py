"""Training of artifacts: epochs, evaluation, early stop, checkpoints, and going on where one stopped.

trainer = QatTrainer("artifacts", TrainOptions(epochs=5))
trainer.fit("train.npz", evaluation="eval.npz")
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.sparsity import two_of_four
from onnxq.errors import TrainingError
from onnxq.qat.data import DataLike, Feed, TrainingData, training_data
from onnxq.qat.losses import TEACHER
from onnxq.qat.manifest import FLOAT_MODEL, TEACHER_MODEL, Manifest, write_atomically
from onnxq.qat.overlay import Overlay
from onnxq.qat.ranks import Ranks
from onnxq.qat.schedules import Schedule, Shape
from onnxq.recipe import LossModel
from onnxq.runtime import make_session

HISTORY, OPTIONS = "history.json", "training.json"
LAST, BEST = "checkpoint.last", "checkpoint.best"
_MESSAGE = 8
"""How many steps go to the worker at a time."""

Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: Passes over the data.
        batch_size: Samples per step.
        learning_rate: The highest one.
        schedule: How it changes.
        warmup: In so many steps it rises.
        accumulate: The gradients of so many batches make one step.
        seed: Of the order of samples.
        checkpoint_every: Steps between checkpoints; 0: one after each epoch.
        patience: Stop after so many epochs without a better figure; None: never.
        metric: The figure that the best model is kept by: accuracy, or the loss where there are no classes.
        processes: Data-parallel processes.
        threads: Threads of each.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: Shape = "cosine"
    warmup: int = 0
    accumulate: int = 1
    seed: int = 0
    checkpoint_every: int = 0
    patience: int | None = None
    metric: Literal["auto", "accuracy", "loss"] = "auto"
    processes: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "processes", "threads"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("warmup", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; give 0 or more")


def saved_options(directory: str | os.PathLike[str]) -> TrainOptions:
    """The options that the training of some artifacts began with.

    Raises:
        TrainingError: If it has not begun.
    """
    path = Path(directory) / OPTIONS
    try:
        return TrainOptions(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TrainingError(
            f"{path} does not exist: no training has begun there; begin with 'onnxq qat train'"
        ) from None
    except (ValueError, TypeError) as err:
        raise TrainingError(f"{path} cannot be read: {err}") from err


@dataclass(frozen=True)
class Progress:
    """What `fit` tells after each epoch.

    Attributes:
        epoch: Counted from 1.
        step: Steps made so far, over all epochs.
        steps: Steps in all.
        loss: Mean loss of the epoch's samples.
        rate: The last learning rate.
        samples_per_second: Over the steps of the epoch, without evaluation.
        figures: Figures of the evaluation, by name.
        best: Whether they are the best so far.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    rate: float
    samples_per_second: float
    figures: dict[str, float] = field(default_factory=dict)
    best: bool = False


@dataclass
class _State:
    """Where training stands; all of it is in a checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = math.inf
    bad_epochs: int = 0
    stopped: bool = False


class QatTrainer:
    """Trains artifacts that `onnxq.qat.artifacts.create` has made.

    Args:
        directory: The artifacts. Checkpoints and the history are written there.
        options: How to train.
        overlay: The training runtime; found in the cache by default.

    Raises:
        TrainingError: If the artifacts cannot be used.
    """

    def __init__(
        self, directory: str | os.PathLike[str], options: TrainOptions | None = None, *, overlay: Overlay | None = None
    ) -> None:
        self.directory = Path(directory)
        self.options = options or TrainOptions()
        self.manifest = Manifest.read(self.directory)
        self._overlay = overlay
        self._state = _State()
        self._teacher: Any = None

    def fit(
        self,
        data: DataLike,
        *,
        evaluation: DataLike | None = None,
        resume: bool = False,
        report: Report | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> list[Progress]:
        """Train.

        Args:
            data: Training data; see `training_data`.
            evaluation: Data for a figure after each epoch; the best checkpoint is kept by it.
            resume: Go on from the last checkpoint, as if there had been no interruption.
            report: Is told after each epoch.
            tick: Is told steps made, and steps in all.

        Returns:
            What was reported for each epoch, those before an interruption included.

        Raises:
            OnnxqError: If data do not fit, or with `resume` differ from those that training began with.
        """
        train = training_data(data, self.manifest)
        held_out = None if evaluation is None else training_data(evaluation, self.manifest)
        plan = _Plan(self.options, len(train))
        history = self._resumed() if resume else self._fresh()
        checkpoint = self.directory / LAST if resume else None
        options = self.options
        with Ranks(
            self.directory, options.processes, threads=options.threads, overlay=self._overlay, checkpoint=checkpoint
        ) as ranks:
            if resume:
                self._go_on(ranks.info.properties, train, history)
            elif self.manifest.masks:
                self._choose_masks(ranks, 0)
            while not self._state.stopped and self._state.step < plan.steps:
                found = self._epoch(ranks, train, plan, tick)
                found = self._evaluated(ranks, held_out, found)
                history.append(found)
                self._save(ranks, train, history)
                if report is not None:
                    report(found)
        return history

    # ---- one epoch

    def _epoch(
        self, ranks: Ranks, train: TrainingData, plan: _Plan, tick: Callable[[int, int], None] | None
    ) -> Progress:
        state, begun, samples = self._state, time.perf_counter(), 0
        epoch, first = divmod(state.step, plan.steps_per_epoch)
        batches = plan.batches(train, epoch, first)
        while group := self._group(batches, plan):
            rates = [plan.schedule.at(state.step + i) for i in range(len(group))]
            losses = ranks.steps([[self._with_teacher(f) for f in parts] for parts in group], rates)
            for parts, loss in zip(group, losses, strict=True):
                count = sum(map(_count, parts))
                samples += count
                state.loss_sum += loss * count
                state.loss_count += count
            if not math.isfinite(state.loss_sum):
                raise TrainingError(
                    f"the loss is {losses[-1]} after step {state.step + len(group)}; use a smaller learning rate, or "
                    "training.clip_grad_norm"
                )
            state.step += len(group)
            self._choose_masks(ranks, state.step)
            if tick is not None:
                tick(state.step, plan.steps)
            if plan.saves_at(state.step) and state.step % plan.steps_per_epoch:
                self._save(ranks, train, None)
        seconds = time.perf_counter() - begun
        loss = state.loss_sum / max(state.loss_count, 1)
        state.loss_sum, state.loss_count = 0.0, 0
        rate = plan.schedule.at(state.step - 1)
        return Progress(epoch + 1, state.step, plan.steps, loss, rate, samples / max(seconds, 1e-9))

    def _group(self, batches: Iterator[list[Feed]], plan: _Plan) -> list[list[Feed]]:
        """The next steps that can be made without anything happening between them."""
        room = plan.until_stop(self._state.step, [m.update_freq for m in self.manifest.masks])
        found: list[list[Feed]] = []
        while len(found) < room and (parts := next(batches, None)) is not None:
            found.append(parts)
        return found

    def _with_teacher(self, feed: Feed) -> Feed:
        """The feed with what the float model gives for it, where the loss looks at that."""
        if not any(i.teacher for i in self.manifest.loss_inputs):
            return feed
        if self._teacher is None:
            whole = self.directory / TEACHER_MODEL
            path = whole if whole.is_file() else self.directory / FLOAT_MODEL
            self._teacher = make_session(path, threads=self.options.threads)
        inputs = {name: feed[name] for name in self.manifest.inputs}
        return {**feed, TEACHER: self._teacher.run([self.manifest.outputs[0]], inputs)[0]}

    def _choose_masks(self, ranks: Ranks, step: int) -> None:
        """Keep two of every four weights anew, where it is time."""
        due = [m for m in self.manifest.masks if step == 0 or (m.update_freq and step % m.update_freq == 0)]
        if not due:
            return
        weights = ranks.first.parameters([m.weight for m in due])
        ranks.set_parameters({m.mask: two_of_four(weights[m.weight], m.axis) for m in due})

    # ---- evaluation

    def _evaluated(self, ranks: Ranks, data: TrainingData | None, found: Progress) -> Progress:
        state = self._state
        if data is None:
            return found
        figures = self._figures(ranks, data)
        name = "accuracy" if self.options.metric != "loss" and "accuracy" in figures else "loss"
        value = -figures[name] if name == "accuracy" else figures[name]
        better = value < state.best
        state.best = min(value, state.best)
        state.bad_epochs = 0 if better else state.bad_epochs + 1
        patience = self.options.patience
        state.stopped = patience is not None and state.bad_epochs >= patience
        if better:
            ranks.first.save_checkpoint(self.directory / BEST, {"step": state.step, name: figures[name]})
        return replace(found, figures=figures, best=better)

    def _figures(self, ranks: Ranks, data: TrainingData) -> dict[str, float]:
        """Mean loss, and accuracy where labels are class indexes, of the eval model."""
        own = isinstance(self.manifest.recipe.training.loss, LossModel)
        classes = [] if own else [i.name for i in self.manifest.loss_inputs if i.dtype == "int64"]
        loss, right, total = 0.0, 0.0, 0
        logits_name = self.manifest.outputs[0]
        for feed in data.batches(np.arange(len(data)), self.options.batch_size):
            found = ranks.first.evaluate(self._with_teacher(feed), [logits_name])
            loss += float(found["loss"]) * _count(feed)
            total += _count(feed)
            if classes:
                labels = feed[classes[0]]
                hits: NDArray[np.bool_] = found[logits_name].argmax(axis=1) == labels
                right += float(hits.mean()) * len(labels)
        return {"loss": loss / total} | ({"accuracy": right / total} if classes else {})

    # ---- checkpoints

    def _fresh(self) -> list[Progress]:
        self._state = _State()
        for name in (LAST, BEST, HISTORY):
            (self.directory / name).unlink(missing_ok=True)
        write_atomically(self.directory / OPTIONS, json.dumps(asdict(self.options), indent=1))
        return []

    def _save(self, ranks: Ranks, train: TrainingData, history: list[Progress] | None) -> None:
        if history is not None:
            write_atomically(self.directory / HISTORY, json.dumps([asdict(p) for p in history], indent=1))
        state = {
            "state": json.dumps(asdict(self._state)),
            "options": json.dumps(_decisive(self.options), sort_keys=True),
            "data": train.digest(),
        }
        ranks.first.save_checkpoint(self.directory / LAST, state)

    def _go_on(self, properties: Mapping[str, Any], train: TrainingData, history: list[Progress]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            TrainingError: If the options or the data are not those it was made with.
        """
        now, then = _decisive(self.options), json.loads(str(properties["options"]))
        for name, value in then.items():
            if now.get(name) != value:
                raise TrainingError(
                    f"{name} was {value!r} when this training began, and is {now.get(name)!r}; give the same options, "
                    "or start anew"
                )
        if properties["data"] != train.digest():
            raise TrainingError(
                f"{train.where} are not the data this training began with; give the same, or start anew"
            )
        self._state = _State(**json.loads(str(properties["state"])))
        history[:] = [row for row in history if row.step <= self._state.step]

    def _resumed(self) -> list[Progress]:
        """The history; the state is read when the checkpoint is open."""
        path = self.directory / LAST
        if not path.is_file():
            raise TrainingError(f"{path} does not exist: training has not reached its first checkpoint; start it anew")
        history = self.directory / HISTORY
        if not history.is_file():
            return []
        return [Progress(**row) for row in json.loads(history.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class _Plan:
    """Which samples make which step."""

    options: TrainOptions
    samples: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // (self.options.batch_size * self.options.accumulate))

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.options.epochs

    @property
    def schedule(self) -> Schedule:
        options = self.options
        return Schedule(options.learning_rate, self.steps, options.schedule, options.warmup)

    def batches(self, data: TrainingData, epoch: int, first: int) -> Iterator[list[Feed]]:
        """For each step of an epoch, from step `first` on, its batches."""
        order = np.random.default_rng([self.options.seed, epoch]).permutation(self.samples)
        size = self.options.batch_size * self.options.accumulate
        for start in range(first * size, self.samples, size):
            yield list(data.batches(order[start : start + size], self.options.batch_size))

    def saves_at(self, step: int) -> bool:
        every = self.options.checkpoint_every
        return bool(every) and step % every == 0

    def until_stop(self, step: int, mask_updates: Sequence[int]) -> int:
        """How many steps can be made before a checkpoint, an evaluation or new masks are due."""
        stops = [self.steps_per_epoch, *(n for n in (self.options.checkpoint_every, *mask_updates) if n)]
        return min(_MESSAGE, *(n - step % n for n in stops))


def _decisive(options: TrainOptions) -> dict[str, Any]:
    """The options that decide the result of a training that is gone on with."""
    kept = asdict(options)
    for name in ("checkpoint_every", "patience", "metric", "threads"):
        del kept[name]
    return kept


def _count(feed: Feed) -> int:
    array: NDArray[Any] = next(iter(feed.values()))
    return len(array)
