"""What AMCT's calls for training have in common: artifacts made or found again, and the files at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq import load_model, plan_model, stages
from onnxq.calib.readers import DataLike
from onnxq.dialects.amct.deployment import DeployedFiles, write_models
from onnxq.dialects.amct.prune_records import to_messages
from onnxq.dialects.amct.pruned_graph import removed_channels
from onnxq.dialects.amct.record import Record, read_record, write_record
from onnxq.dialects.amct.retrain_job import RetrainJob
from onnxq.dialects.amct.retrain_model import PRUNED, RetrainModel, artifacts_beside
from onnxq.errors import DataError, RecordError, TrainingError
from onnxq.qat.artifacts import Artifacts, create
from onnxq.qat.manifest import FLOAT_MODEL, MANIFEST, Manifest
from onnxq.recipe import Recipe, TrainingConfig

PathLike = str | os.PathLike[str]
Training = TrainingConfig | Mapping[str, object]
InputData = DataLike | NDArray[Any] | Sequence[NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]]
"""A batch as AMCT takes it (arrays in the order of the inputs), feeds by name, or calibration data of any kind."""


def created(
    job: RetrainJob,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    training: Training | None,
) -> RetrainModel:
    """A model at the beginning of its training.

    Args:
        job: What the configuration means for the model.
        model: The float model.
        record_file: The record; the artifacts go beside it.
        input_data: For calibration.
        training: The loss and the optimizer.
    """
    found = _make(job, model, record_file, input_data, training)
    found.forget()
    return found


def _make(
    job: RetrainJob,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    training: Training | None,
) -> RetrainModel:
    data, samples = _batches(model, input_data, job)
    recipe = _recipe(job, training, samples)
    made = create(Path(model), data, artifacts_beside(record_file), recipe=recipe, quantize=job.quantizes)
    _write_pruned(Path(model), made)
    return RetrainModel(made.directory, record_file, notes=(*job.notes, *made.notes))


def _write_pruned(model: Path, made: Artifacts) -> None:
    """Keep with the artifacts which channels the model has lost."""
    file = made.directory / PRUNED
    if not made.manifest.kept:
        file.unlink(missing_ok=True)
        return
    before = plan_model(model, recipe={"target": "ascend"}).graph
    found = removed_channels(before, load_model(made.directory / FLOAT_MODEL), made.manifest.kept)
    write_record(Record({}, prune=to_messages(found)), file)


def restored(
    job: RetrainJob,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    pth_file: PathLike,
    training: Training | None,
) -> RetrainModel:
    """A model as a checkpoint has it; artifacts that are there and fit are taken again.

    Args:
        job: What the configuration means for the model.
        model: The float model.
        record_file: The record; the artifacts are beside it.
        input_data: For calibration.
        pth_file: The checkpoint.
        training: The loss and the optimizer.

    Raises:
        TrainingError: If there is no such checkpoint.
    """
    if not Path(pth_file).is_file():
        raise TrainingError(f"there is no checkpoint {pth_file}")
    directory = artifacts_beside(record_file)
    _, samples = _batches(model, input_data, job)
    if _has(directory, Path(model), _recipe(job, training, samples)):
        found = RetrainModel(directory, record_file, notes=job.notes)
    else:
        found = _make(job, model, record_file, input_data, training)
    found.load_checkpoint(pth_file)
    return found


def _has(directory: Path, model: Path, recipe: Recipe) -> bool:
    """Whether a folder has the artifacts of a model and a recipe."""
    return (directory / MANIFEST).is_file() and Manifest.read(directory).is_for(model, recipe)


def _recipe(job: RetrainJob, training: Training | None, samples: int | None) -> Recipe:
    recipe = job.recipe
    if training is not None:
        recipe = recipe.replace(training=training)
    return recipe.replace(calibration=recipe.calibration.replace(samples=samples))


def _batches(model: PathLike, data: InputData | None, job: RetrainJob) -> tuple[DataLike | None, int | None]:
    """The first ``batch_num`` batches, and how many samples are to be used of data that are not cut into batches."""
    if data is None or isinstance(data, (str, os.PathLike)):
        return data, job.samples()
    names = [str(tensor.name) for tensor in load_model(model).inputs]
    if isinstance(data, np.ndarray):
        data = (data,)
    if isinstance(data, Mapping):
        return _inputs(data, names), None
    if isinstance(data, Sequence) and data and isinstance(data[0], np.ndarray):
        if len(data) != len(names):
            raise DataError(f"input_data has {len(data)} arrays; the model has {len(names)} inputs: {', '.join(names)}")
        return dict(zip(names, data, strict=True)), None
    if isinstance(data, Iterable):
        found = islice(data, job.batch_num)
        return [_inputs(feed, names) if isinstance(feed, Mapping) else feed for feed in found], None
    return data, None


def _inputs(feed: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A feed without labels, if it has all inputs."""
    return {name: feed[name] for name in names} if all(name in feed for name in names) else dict(feed)


def save_quantized(model: RetrainModel | PathLike, record_file: PathLike, save_path: PathLike) -> None:
    """Write the files of a quantized model.

    Args:
        model: What was trained, or the float model.
        record_file: The record with its numbers.
        save_path: A prefix of the files.

    Raises:
        RecordError: If there is no record yet, or it does not fit.
    """
    files = DeployedFiles.under(save_path)
    trained = model if isinstance(model, RetrainModel) else RetrainModel(artifacts_beside(record_file), record_file)
    if not Path(record_file).is_file():
        raise RecordError(f"there is no record {record_file}; it is written by infer(), once training is done")
    record = read_record(record_file)
    result = trained.result
    floats = result.original if result.original is not None else result.graph
    recipe = {"target": "ascend", "fuse": {"batchnorm": False}, "fp16_scales": bool(record.fp16)}
    inserted = stages.insert(floats, record.layers, recipe=recipe)
    write_models(inserted.deploy, inserted.fake_quant, floats.skeleton(), files)
