"""From a model with Q/DQ pairs to the files for ATC, and from a deploy model back to what runs elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from onnxq import ascend
from onnxq.dialects.amct.deployment import DeployedFiles, record_of, write_models
from onnxq.dialects.amct.record import write_record
from onnxq.errors import ModelError

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        files: The files.
        notes: What a user should know, a sentence each.
        skipped: What was left in floats, and why: ``node: reason``.
        layers: How many layers have codes, where that is known.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    layers: int = 0


def convert_qat_model(model_file: PathLike, save_path: PathLike, record_file: PathLike | None = None) -> Conversion:
    """Turn a model with QuantizeLinear and DequantizeLinear into the files for ATC.

    Nothing is calibrated: scales and zero points are those of the model. uint8 becomes int8.

    Args:
        model_file: The model, from a training tool, ONNX Runtime or `onnxq.quantize`.
        save_path: A prefix of the files, ``out/net`` or ``out/``.
        record_file: Also write the numbers as a record.

    Returns:
        What was written: the deploy model, its twin in standard operators, the fusion file and the record.

    Raises:
        GraphError: If Ascend's operators cannot express the numbers of the model.
        ModelError: If the model cannot be read or a file not be written.
        RecordError: If the record cannot be written.
    """
    files = DeployedFiles.under(save_path)
    result = ascend.convert_qdq(_existing(model_file))
    written = write_models(result.deploy.graph, result.fake_quant.graph, result.floats.graph.skeleton(), files)
    if record_file is not None:
        written += (write_record(record_of(result.factors, fp16=False), record_file),)
    return Conversion(written, result.notes, result.skipped, len(result.factors))


def simulate(model_file: PathLike, save_path: PathLike) -> Conversion:
    """Write a deploy model in integer operators that ONNX Runtime executes exactly.

    Args:
        model_file: The deploy model, AMCT's or ours.
        save_path: The file to write.

    Raises:
        GraphError: If there is an operator that cannot be simulated; the message names it.
        ModelError: If the model cannot be read or the file not be written.
    """
    result = ascend.simulate_model(_existing(model_file))
    return Conversion((result.save(save_path),), result.notes)


def deploy_to_qdq(model_file: PathLike, save_path: PathLike) -> Conversion:
    """Write a deploy model with QuantizeLinear and DequantizeLinear, for other backends.

    Args:
        model_file: The deploy model, AMCT's or ours.
        save_path: The file to write.

    Raises:
        GraphError: If Q/DQ cannot express it; the message names the node.
        ModelError: If the model cannot be read or the file not be written.
    """
    result = ascend.deploy_to_qdq(_existing(model_file))
    return Conversion((result.save(save_path),), result.notes)


def _existing(model_file: PathLike) -> Path:
    """The path of a model; a prefix of files is a mistake that is easily made.

    Raises:
        ModelError: If it is a prefix.
    """
    path = Path(model_file)
    deploy = path.with_name(f"{path.name}_deploy_model.onnx")
    if not path.exists() and deploy.exists():
        raise ModelError(f"there is no model file {path}; did you mean {deploy.name!r}?")
    return path
