"""The model that AMCT's ``create_…_retrain_model`` returns: training artifacts, and where training stands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq import load_model
from onnxq.dialects.amct.deployment import record_of
from onnxq.dialects.amct.prune_records import to_messages
from onnxq.dialects.amct.pruned_graph import selective_masks
from onnxq.dialects.amct.record import read_record, write_record
from onnxq.errors import DataError, TrainingError
from onnxq.qat.data import DataLike
from onnxq.qat.manifest import FLOAT_MODEL, Manifest
from onnxq.qat.overlay import Overlay
from onnxq.qat.save import newest_checkpoint, open_worker, quantized, trained_values
from onnxq.qat.trainer import BEST, HISTORY, LAST, OPTIONS, Progress, QatTrainer, TrainOptions
from onnxq.qat.worker_client import Worker
from onnxq.result import Result
from onnxq.runtime import make_session

if TYPE_CHECKING:
    from typing_extensions import Self

PathLike = str | os.PathLike[str]
Feed = Mapping[str, NDArray[Any]]
PRUNED = "pruned.txt"
"""The channels that were removed, as a record; among the artifacts."""


def artifacts_beside(record_file: PathLike) -> Path:
    """The folder of the artifacts that belong to a record: ``out/record.retrain`` for ``out/record.txt``."""
    return Path(record_file).with_suffix(".retrain")


class RetrainModel:
    """A model that is trained with its quantizers or its masks in it.

    ``train`` runs whole epochs, writes checkpoints and goes on where an interrupted training stopped; ``step`` is for
    loops of one's own. ``infer`` afterwards writes the record.

    Args:
        directory: The artifacts; any client of onnxruntime-training can train them too.
        record_file: Where `infer` writes the record.
        overlay: The training runtime; found in the cache by default.

    Attributes:
        directory: The artifacts.
        record_file: Where the record goes.
        manifest: What the parameters mean.
        notes: What a user should know, a sentence each.

    Raises:
        TrainingError: If there are no artifacts.
    """

    def __init__(
        self,
        directory: PathLike,
        record_file: PathLike,
        *,
        overlay: Overlay | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.directory = Path(directory)
        self.record_file = Path(record_file)
        self.manifest = Manifest.read(self.directory)
        self.notes = notes
        self._overlay = overlay
        self._worker: Worker | None = None
        self._resume = False
        self._checkpoint: Path | None = None
        self._result: Result | None = None

    # ---- training

    def train(
        self,
        data: DataLike,
        *,
        evaluation: DataLike | None = None,
        options: TrainOptions | None = None,
        report: Callable[[Progress], None] | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> list[Progress]:
        """Train for whole epochs; after `load_checkpoint` from there on, as if there had been no interruption.

        Args:
            data: An .npz file or arrays by name, ``labels`` among them.
            evaluation: The same for a figure after each epoch; the best checkpoint is kept by it.
            options: How to train; after `load_checkpoint` those that training began with.
            report: Is told after each epoch.
            tick: Is told steps made, and steps in all.

        Returns:
            What was reported for each epoch.

        Raises:
            OnnxqError: If the data do not fit, or the options are not those a checkpoint was made with.
        """
        self.close()
        trainer = QatTrainer(self.directory, options, overlay=self._overlay)
        rows = trainer.fit(data, evaluation=evaluation, resume=self._resume, report=report, tick=tick)
        self._resume, self._checkpoint, self._result = False, None, None
        return rows

    def step(self, feed: Feed, learning_rate: float) -> float:
        """Make one step with one batch: for training loops of one's own.

        Args:
            feed: Inputs and labels by name.
            learning_rate: Of this step.

        Returns:
            The loss.

        Raises:
            TrainingError: If the feed does not fit, or masks have to be chosen anew, which `train` does.
        """
        if self.manifest.masks:
            raise TrainingError("2:4 masks are chosen during training: use train, which does it")
        self._result = None
        return self._open().train_step(dict(feed), learning_rate).loss

    def save_checkpoint(self, path: PathLike) -> Path:
        """Write where training stands: parameters, those of quantizers included, and the optimizer's state.

        Args:
            path: The file; its folder must exist.

        Raises:
            TrainingError: If it cannot be written.
        """
        if self._worker is not None:
            return self._worker.save_checkpoint(Path(path))
        found = self._current() or self.directory / "checkpoint"
        try:
            return Path(shutil.copyfile(found, path))
        except OSError as err:
            raise TrainingError(f"the checkpoint {path} cannot be written: {err.strerror or err}") from err

    def load_checkpoint(self, path: PathLike) -> None:
        """Go on from a checkpoint that `save_checkpoint` or an interrupted training has written.

        Args:
            path: The file.

        Raises:
            TrainingError: If it cannot be read.
        """
        self.close()
        source, last = Path(path), self.directory / LAST
        if not source.is_file():
            raise TrainingError(f"there is no checkpoint {source}")
        if not (last.exists() and last.samefile(source)):
            draft = self.directory / f".{LAST}.draft"
            shutil.copyfile(source, draft)
            draft.replace(last)
        self._resume, self._checkpoint, self._result = True, last, None

    def forget(self) -> None:
        """Remove what earlier trainings have left among the artifacts."""
        self.close()
        for name in (LAST, BEST, HISTORY, OPTIONS):
            (self.directory / name).unlink(missing_ok=True)
        self._resume, self._checkpoint, self._result = False, None, None

    def _current(self) -> Path | None:
        """The checkpoint that counts; None for that of the artifacts."""
        return newest_checkpoint(self.directory, self._checkpoint)

    def _open(self) -> Worker:
        if self._worker is None:
            self._worker = open_worker(self.directory, self._current(), self._overlay)
        return self._worker

    # ---- results

    @property
    def values(self) -> dict[str, NDArray[Any]]:
        """The trained parameters by name."""
        if self._worker is not None:
            return self._worker.parameters()
        return trained_values(self.directory, self._current(), overlay=self._overlay)

    @property
    def result(self) -> Result:
        """The quantized model that the parameters make."""
        if self._result is None:
            self._result = quantized(self.directory, self.values)
        return self._result

    def infer(self, feed: Feed | None = None) -> dict[str, NDArray[Any]]:
        """Write the record, and run the model as it will be deployed.

        Args:
            feed: Inputs by name; what else is among them, such as labels, is left out. None: only write the record.

        Returns:
            The outputs by name; empty without a feed.

        Raises:
            OnnxqError: If the parameters cannot be used, or the record cannot be written.
        """
        result = self.result
        record = record_of(result.factors, fp16=result.recipe.fp16_scales)
        write_record(replace(record, prune=self._prune_records()), self.record_file)
        if feed is None:
            return {}
        missing = [name for name in self.manifest.inputs if name not in feed]
        if missing:
            raise DataError(f"the feed lacks {', '.join(missing)}; found {', '.join(feed)}")
        session = make_session(result.twin or result.graph)
        inputs = {name: np.asarray(feed[name]) for name in self.manifest.inputs}
        return dict(zip(session.output_names, session.run(None, inputs), strict=True))

    def _prune_records(self) -> tuple[Any, ...]:
        """What the record says of pruning: the channels that are gone, and the masks as they are now."""
        pruned = self.directory / PRUNED
        found = read_record(pruned).prune if pruned.is_file() else ()
        if self.manifest.masks:
            graph = load_model(self.directory / FLOAT_MODEL)
            found += to_messages(selective_masks(graph, self.manifest.masks, self.values))
        return found

    def close(self) -> None:
        """End the process that `step` has begun; what was not saved of its training is lost."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            self._result = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
