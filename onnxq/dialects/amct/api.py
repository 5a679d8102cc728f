"""AMCT's calls, with its names and the order of its arguments; the flavour for ONNX files.

    amct.create_quant_config("config.json", "model.onnx", batch_num=2)
    model = amct.quantize_model("config.json", "model.onnx", "modified.onnx", "record.txt")
    for images in batches:
        model.run(None, {"input": images})  # calibration ends by itself after batch_num runs
    amct.save_model("modified.onnx", "record.txt", "out/model")

Where AMCT gives a file that runs in ONNX Runtime with AMCT's operators only, these calls give an object that is run
like an `onnxruntime.InferenceSession`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxq import load_model, plan_model, stages
from onnxq import save_model as save_graph
from onnxq.dialects._files import write_text
from onnxq.dialects.amct.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    ModelEvaluator,
    SearchResult,
    Strategy,
    auto_calibrate,
    strategy_of,
    write_files,
)
from onnxq.dialects.amct.config import AmctConfig, Mention, read_config
from onnxq.dialects.amct.convert import convert_qat_model
from onnxq.dialects.amct.deployment import DeployedFiles, record_of, write_models
from onnxq.dialects.amct.job import AmctJob, load_config
from onnxq.dialects.amct.json_config import JsonConfig, format_json
from onnxq.dialects.amct.layers import layers_of
from onnxq.dialects.amct.prober import ModelProber
from onnxq.dialects.amct.proto.scale_offset_record_pb2 import ScaleOffsetRecord
from onnxq.dialects.amct.record import read_record, write_record
from onnxq.dialects.amct.settings import resolve
from onnxq.dialects.amct.text_format import format_message
from onnxq.errors import RecipeError, RecordError
from onnxq.live import LiveCalibration

PathLike = str | os.PathLike[str]
Feed = Mapping[str, NDArray[Any]]


def create_quant_config(
    config_file: PathLike,
    model_file: PathLike,
    skip_layers: Iterable[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: PathLike | None = None,
    updated_model: PathLike | None = None,
) -> None:
    """Write the JSON that says how every layer of a model is quantized.

    Args:
        config_file: The JSON to write.
        model_file: The float model.
        skip_layers: Names of layers that stay float.
        batch_num: How many batches calibrate.
        activation_offset: Whether activations have a zero point.
        config_defination: A simplified configuration; then the three arguments before it have no effect, as in AMCT.
        updated_model: Also write the model with a name for each node that has none.

    Raises:
        RecipeError: If the configuration is wrong or names what the model does not have.
        ModelError: If the model cannot be read.
    """
    if config_defination is not None:
        config = read_config(Path(config_defination))
    else:
        skipped = tuple(Mention(name) for name in skip_layers or ())
        config = AmctConfig(batch_num=batch_num, activation_offset=activation_offset, skip_layers=skipped)
    resolved = resolve(config, layers_of(plan_model(model_file, recipe={"target": "ascend"})))
    if updated_model is not None:
        save_graph(stages.name_nodes(model_file), updated_model)
    write_text(Path(config_file), format_json(JsonConfig.of(config, resolved)), "configuration", RecipeError)


def quantize_preprocess(
    config_file: PathLike, record_file: PathLike, model_file: PathLike, input_data: Feed | Iterable[Feed]
) -> None:
    """Write the balance factors that one batch gives into a record.

    There is no need for it: `quantize_model` balances by itself, over all its batches, and its record has these
    factors. It is here for scripts that call it, and for looking at the factors.

    Args:
        config_file: JSON or simplified configuration; layers with DMQ are balanced.
        record_file: The record to write.
        model_file: The float model.
        input_data: One feed, or several.

    Raises:
        RecipeError: If the configuration is wrong, or no layer of it is to be balanced.
        CalibrationError: If the activations cannot be balanced.
    """
    job = load_config(Path(config_file), model_file)
    if not any(rule.balance is not None for rule in job.recipe.rules):
        raise RecipeError(f"{config_file}: no layer has a dmq_balancer; quantize_preprocess has nothing to do")
    feeds = [input_data] if isinstance(input_data, Mapping) else list(input_data)
    measured = stages.measure(model_file, feeds, recipe=job.recipe)
    message = ScaleOffsetRecord()
    for layer, factors in measured.context.balance.items():
        message.record.add(key=layer).value.tensor_balance_factor.extend(factors.tolist())
    write_text(Path(record_file), format_message(message), "record file", RecordError)


def quantize_model(
    config_file: PathLike, model_file: PathLike, modified_onnx_file: PathLike, record_file: PathLike
) -> LiveCalibration:
    """Begin to calibrate: the model that is returned is run by the caller, batch by batch.

    After `batch_num` runs the two files are written, and further runs only run.

    Args:
        config_file: JSON or simplified configuration.
        model_file: The float model.
        modified_onnx_file: The float model to write, in the form it is quantized in: folded, balanced, with weights
            rounded by AdaRound or NUQ.
        record_file: The record to write: scale and offset of every layer.

    Raises:
        RecipeError: If the configuration is wrong or names what the model does not have.
        ModelError: If the model cannot be read.
    """
    job = load_config(Path(config_file), model_file)

    def finish(feeds: Callable[[], Iterator[dict[str, NDArray[Any]]]]) -> None:
        chosen = stages.measure(model_file, feeds, recipe=job.recipe).choose()
        save_graph(chosen.graph, modified_onnx_file)
        write_record(record_of(chosen.factors, fp16=job.recipe.fp16_scales), record_file)

    return LiveCalibration(model_file, job.batch_num, finish)


def save_model(modified_onnx_file: PathLike, record_file: PathLike, save_path: PathLike) -> None:
    """Write the model for ATC, its twin in standard operators and the fusion file.

    No calibration is needed, and not the same process: the record may come from AMCT or be made by hand.

    Args:
        modified_onnx_file: What `quantize_model` wrote; the float model itself does as well, but AdaRound and NUQ
            change weights, which only the written model has.
        record_file: The record.
        save_path: A prefix of the files, ``out/net`` or ``out/``.

    Raises:
        RecordError: If the record is wrong or does not fit the model.
        ModelError: If the model cannot be read or a file not be written.
    """
    files = DeployedFiles.under(save_path)
    record = read_record(record_file)
    recipe = {"target": "ascend", "fp16_scales": bool(record.fp16)}
    inserted = stages.insert(modified_onnx_file, record.layers, recipe=recipe)
    write_models(inserted.deploy, inserted.fake_quant, skeleton_of(modified_onnx_file), files)


def accuracy_based_auto_calibration(
    model_file: PathLike,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: PathLike,
    record_file: PathLike,
    save_dir: PathLike,
    strategy: str | Strategy = "BinarySearch",
    sensitivity: str = "CosineSimilarity",
) -> SearchResult:
    """Quantize as much of a model as the user's evaluator accepts.

    The model is calibrated once; what is tried afterwards are other numbers for the same statistics. ``evaluate`` gets
    the path of a model that plain ONNX Runtime runs, ``calibration`` a model to run like a session.

    Args:
        model_file: The float model.
        model_evaluator: The user's.
        config_file: JSON or simplified configuration.
        record_file: The record to write.
        save_dir: Prefix of the models, as for `save_model`; the files that tell about the search go next to them.
        strategy: ``BinarySearch``, AMCT's; or ``Repair``, which tries other algorithms before it gives up layers.
        sensitivity: ``CosineSimilarity``.

    Returns:
        What was tried and found. Where everything would have to stay float, no model is written.

    Raises:
        RecipeError: If the configuration is wrong, or there is no such strategy or sensitivity.
        CalibrationError: If the evaluator does not do what it must.
        OnnxqError: If the model cannot be used or a file not be written.
    """
    if sensitivity != "CosineSimilarity":
        raise RecipeError(f"there is no sensitivity {sensitivity!r}; known: CosineSimilarity")
    files, chosen_strategy = DeployedFiles.under(save_dir), strategy_of(strategy)
    job = load_config(Path(config_file), model_file)
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        prober = ModelProber(Path(model_file), job, model_evaluator, Path(folder))
        found = auto_calibrate(prober, model_evaluator.metric_eval, chosen_strategy)
        if found.trial is not None:
            chosen = prober.chosen(found.trial.settings)
            inserted = stages.insert(chosen.graph, chosen.factors, recipe=chosen.recipe)
            write_models(inserted.deploy, inserted.fake_quant, skeleton_of(model_file), files)
            write_record(record_of(chosen.factors, fp16=job.recipe.fp16_scales), record_file)
    write_files(found, json.loads(format_json(job.to_json())), save_dir)
    return found


def skeleton_of(model_file: PathLike) -> onnx.ModelProto:
    """A model without its big weights."""
    return load_model(model_file).skeleton()


__all__ = [
    "AmctJob",
    "AutoCalibrationEvaluatorBase",
    "ModelEvaluator",
    "accuracy_based_auto_calibration",
    "convert_qat_model",
    "create_quant_config",
    "load_config",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
]
