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

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq import save_model as save_graph
from onnxq.dialects._files import write_text
from onnxq.dialects.amct._retrain_steps import InputData, PathLike, Training, created, restored, save_quantized
from onnxq.dialects.amct.deployment import DeployedFiles
from onnxq.dialects.amct.retrain_config import AmctRetrainConfig, read_retrain_config
from onnxq.dialects.amct.retrain_job import load_retrain_config, prepare_retrain
from onnxq.dialects.amct.retrain_json import format_retrain_json
from onnxq.dialects.amct.retrain_model import RetrainModel
from onnxq.errors import RecipeError


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
    return created(job, model, record_file, input_data, training)


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
    return restored(job, model, record_file, input_data, pth_file, training)


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
    save_quantized(model, record_file, save_path)


def create_prune_retrain_model(
    model: PathLike,
    input_data: InputData | None,
    config_defination: PathLike,
    record_file: PathLike,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """Prune a model, to be trained afterwards: channels are removed, weights get two zeros in every four.

    Args:
        model: The float model.
        input_data: Has no effect: channels are chosen by their weights.
        config_defination: A simplified configuration with a `prune_config`.
        record_file: The record that `RetrainModel.infer` writes: what was pruned.
        training: Beyond AMCT: the loss and the optimizer, as in a recipe.

    Raises:
        OnnxqError: If the configuration or the model cannot be used, or there is no training runtime.
    """
    job = load_retrain_config(Path(config_defination), model, purpose="prune")
    return created(job, model, record_file, input_data, training)


def restore_prune_retrain_model(
    model: PathLike,
    input_data: InputData | None,
    config_defination: PathLike,
    record_file: PathLike,
    pth_file: PathLike,
    state_dict_name: str | None = None,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """The pruned model of an interrupted training; see `restore_quant_retrain_model`.

    Raises:
        OnnxqError: As for `create_prune_retrain_model`, or if the checkpoint cannot be used.
    """
    del state_dict_name
    job = load_retrain_config(Path(config_defination), model, purpose="prune")
    return restored(job, model, record_file, input_data, pth_file, training)


def save_prune_retrain_model(
    model: RetrainModel,
    save_path: PathLike,
    input_data: InputData | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, object] | None = None,
) -> None:
    """Write a pruned and trained model; the two files have the same content, as AMCT's have.

    Args:
        model: What was trained.
        save_path: A prefix of the files, ``out/net`` or ``out/``.
        input_data: Has no effect, like the arguments behind it.
        input_names: See `input_data`.
        output_names: See `input_data`.
        dynamic_axes: See `input_data`.

    Raises:
        OnnxqError: If the model cannot be used or a file not be written.
    """
    del input_data, input_names, output_names, dynamic_axes
    files = DeployedFiles.under(save_path)
    for path in (files.deploy, files.fake_quant):
        save_graph(model.result.graph, path)


def create_compressed_retrain_model(
    model: PathLike,
    input_data: InputData | None,
    config_defination: PathLike,
    record_file: PathLike,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """Prune a model and put trainable quantizers into it.

    Args:
        model: The float model.
        input_data: The first ``batch_num`` batches of it calibrate.
        config_defination: A simplified configuration with a `prune_config`; what it does not say of quantization is
            8 bits.
        record_file: The record that `RetrainModel.infer` writes: scales, and what was pruned.
        training: Beyond AMCT: the loss and the optimizer, as in a recipe.

    Raises:
        OnnxqError: If the configuration, the model or the data cannot be used, or there is no training runtime.
    """
    job = load_retrain_config(Path(config_defination), model, purpose="compressed")
    return created(job, model, record_file, input_data, training)


def restore_compressed_retrain_model(
    model: PathLike,
    input_data: InputData | None,
    config_defination: PathLike,
    record_file: PathLike,
    pth_file: PathLike,
    state_dict_name: str | None = None,
    *,
    training: Training | None = None,
) -> RetrainModel:
    """The pruned and quantized model of an interrupted training; see `restore_quant_retrain_model`.

    Raises:
        OnnxqError: As for `create_compressed_retrain_model`, or if the checkpoint cannot be used.
    """
    del state_dict_name
    job = load_retrain_config(Path(config_defination), model, purpose="compressed")
    return restored(job, model, record_file, input_data, pth_file, training)


def save_compressed_retrain_model(
    model: RetrainModel | PathLike,
    record_file: PathLike,
    save_path: PathLike,
    input_data: InputData | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, object] | None = None,
) -> None:
    """Write the model for ATC, its twin in standard operators and the fusion file; see `save_quant_retrain_model`.

    Raises:
        RecordError: If there is no record yet, or it does not fit the model.
        OnnxqError: If the model cannot be used or a file not be written.
    """
    del input_data, input_names, output_names, dynamic_axes
    save_quantized(model, record_file, save_path)


__all__ = [
    "RetrainModel",
    "create_compressed_retrain_model",
    "create_prune_retrain_model",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "restore_compressed_retrain_model",
    "restore_prune_retrain_model",
    "restore_quant_retrain_model",
    "save_compressed_retrain_model",
    "save_prune_retrain_model",
    "save_quant_retrain_model",
]
