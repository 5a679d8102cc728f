"""AMCT's calls for quantization-aware training, with its names and the order of its arguments, for ONNX files.

    amct.create_quant_retrain_config("config.json", "model.onnx", input_data, config_defination="retrain.cfg")
    model = amct.create_quant_retrain_model("config.json", "model.onnx", "record.txt", input_data)
    model.train("train.npz")
    model.infer(batch)  # writes the record
    amct.save_quant_retrain_model("config.json", model, "record.txt", "out/model", input_data)

Where AMCT gives a module of a training framework, these calls give an object that trains by itself; its artifacts are
in a folder beside the record.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq import load_model, stages
from onnxq.calib.readers import DataLike
from onnxq.dialects._files import write_text
from onnxq.dialects.amct.deployment import DeployedFiles, write_models
from onnxq.dialects.amct.record import read_record
from onnxq.dialects.amct.retrain_config import AmctRetrainConfig, read_retrain_config
from onnxq.dialects.amct.retrain_job import RetrainJob, load_retrain_config, prepare_retrain
from onnxq.dialects.amct.retrain_json import format_retrain_json
from onnxq.dialects.amct.retrain_model import RetrainModel, artifacts_beside
from onnxq.errors import DataError, RecipeError, RecordError, TrainingError
from onnxq.qat.artifacts import create
from onnxq.qat.manifest import MANIFEST, Manifest
from onnxq.recipe import Recipe, TrainingConfig

PathLike = str | os.PathLike[str]
Training = TrainingConfig | Mapping[str, object]
InputData = DataLike | NDArray[Any] | Sequence[NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]]
"""A batch as AMCT takes it (arrays in the order of the inputs), feeds by name, or calibration data of any kind."""


def create_quant_retrain_config(
    config_file: PathLike,
    model: PathLike,
    input_data: InputData | None = None,
    config_defination: PathLike | None = None,
) -> None:
    """Write the JSON that says how every layer of a model is trained.

    Args:
        config_file: The JSON to write.
        model: The float model.
        input_data: Has no effect: an ONNX model needs no tracing.
        config_defination: A simplified configuration; without it everything is quantized to 8 bits.

    Raises:
        RecipeError: If the configuration is wrong or names what the model does not have.
        ModelError: If the model cannot be read.
    """
    del input_data
    config = AmctRetrainConfig() if config_defination is None else read_retrain_config(Path(config_defination))
    job = prepare_retrain(config, model, purpose="quant")
    write_text(Path(config_file), format_retrain_json(job.to_json()), "configuration", RecipeError)


def create_quant_retrain_model(
    config_file: PathLike,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None = None,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """Put trainable quantizers into a model.

    Calibration with `input_data` gives the ranges that training begins with.

    Args:
        config_file: JSON or simplified configuration.
        model: The float model.
        record_file: The record that the model writes after training; its artifacts go into a folder beside it.
        input_data: The first ``batch_num`` batches of it calibrate.
        training: Beyond AMCT: the loss and the optimizer, as in a recipe; cross entropy and AdamW by default.

    Raises:
        OnnxqError: If the configuration, the model or the data cannot be used, or there is no training runtime.
    """
    job = load_retrain_config(Path(config_file), model, purpose="quant")
    return _created(job, model, record_file, input_data, training)


def restore_quant_retrain_model(
    config_file: PathLike,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    pth_file: PathLike,
    state_dict_name: str | None = None,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """The model of an interrupted training, as its checkpoint has it.

    Args:
        config_file: As for `create_quant_retrain_model`.
        model: Likewise.
        record_file: Likewise; artifacts that are there already are taken again if they fit.
        input_data: Likewise; not looked at where there are artifacts.
        pth_file: The checkpoint.
        state_dict_name: Has no effect: a checkpoint holds one model.
        training: As for `create_quant_retrain_model`.

    Raises:
        OnnxqError: As for `create_quant_retrain_model`, or if the checkpoint cannot be used.
    """
    del state_dict_name
    job = load_retrain_config(Path(config_file), model, purpose="quant")
    return _restored(job, model, record_file, input_data, pth_file, training)


def save_quant_retrain_model(
    config_file: PathLike,
    model: RetrainModel | PathLike,
    record_file: PathLike,
    save_path: PathLike,
    input_data: InputData | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, object] | None = None,
) -> None:
    """Write the model for ATC, its twin in standard operators and the fusion file.

    Args:
        config_file: Has no effect: the artifacts know what they were made for.
        model: What was trained; or the float model, then the artifacts beside `record_file` are taken.
        record_file: The record that `RetrainModel.infer` has written.
        save_path: A prefix of the files, ``out/net`` or ``out/``.
        input_data: Has no effect, like the arguments behind it: an ONNX model needs no export.
        input_names: See `input_data`.
        output_names: See `input_data`.
        dynamic_axes: See `input_data`.

    Raises:
        RecordError: If there is no record yet, or it does not fit the model.
        OnnxqError: If the model cannot be used or a file not be written.
    """
    del config_file, input_data, input_names, output_names, dynamic_axes
    _save_quantized(model, record_file, save_path)


# ---- what the calls have in common


def _created(
    job: RetrainJob,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    training: Training | None,
) -> RetrainModel:
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
    return RetrainModel(made.directory, record_file, notes=(*job.notes, *made.notes))


def _restored(
    job: RetrainJob,
    model: PathLike,
    record_file: PathLike,
    input_data: InputData | None,
    pth_file: PathLike,
    training: Training | None,
) -> RetrainModel:
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


def _save_quantized(model: RetrainModel | PathLike, record_file: PathLike, save_path: PathLike) -> None:
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


__all__ = [
    "RetrainModel",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "restore_quant_retrain_model",
    "save_quant_retrain_model",
]
