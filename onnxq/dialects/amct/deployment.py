"""The files of a deployed model under AMCT's names: the model for ATC, its twin, the fusion file, the record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxq import GraphModel, save_model
from onnxq.dialects.amct.fusion_json import fusion_info, write_fusion_json
from onnxq.dialects.amct.record import Record, write_record
from onnxq.errors import ModelError
from onnxq.factors import LayerFactors
from onnxq.result import Result, twin_path


@dataclass(frozen=True, slots=True)
class DeployedFiles:
    """Where the files go.

    Attributes:
        deploy: The model for ATC.
        fake_quant: The same in standard operators.
        fusion: Which operators of the original each operator stands for.
        record: The numbers.
    """

    deploy: Path
    fake_quant: Path
    fusion: Path
    record: Path

    @staticmethod
    def under(save_path: str | os.PathLike[str]) -> DeployedFiles:
        """The files under a prefix.

        ``out/net`` gives ``out/net_deploy_model.onnx``, ``out/`` gives ``out/deploy_model.onnx``.

        Args:
            save_path: A folder, then with a slash at the end, or a folder and the start of the names.

        Raises:
            ModelError: If the folder does not exist.
        """
        text = os.fspath(save_path)
        path = Path(text)
        folder, start = (path, "") if text.endswith(("/", os.sep)) else (path.parent, f"{path.name}_")
        if not folder.is_dir():
            raise ModelError(f"{folder}: there is no such folder to save to; make it first")
        names = ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json", "record.txt")
        return DeployedFiles(*(folder / f"{start}{name}" for name in names))

    @staticmethod
    def beside(deploy: str | os.PathLike[str]) -> DeployedFiles:
        """The files that go with a deploy model of any name."""
        path = Path(deploy)
        twin = twin_path(path)
        start = twin.name.removesuffix("fake_quant_model.onnx")
        return DeployedFiles(path, twin, path.with_name(f"{start}quant.json"), path.with_name(f"{start}record.txt"))

    @property
    def name(self) -> str:
        """What the fusion file calls the model."""
        return self.deploy.stem


def write_models(
    deploy: GraphModel, fake_quant: GraphModel, original: onnx.ModelProto, files: DeployedFiles
) -> tuple[Path, ...]:
    """Write the deploy model, its twin and the fusion file.

    Args:
        deploy: The model for ATC.
        fake_quant: Its twin.
        original: The float model; weights are not looked at.
        files: Where to.

    Returns:
        The files.

    Raises:
        ModelError: If one cannot be written.
    """
    save_model(deploy, files.deploy)
    save_model(fake_quant, files.fake_quant)
    write_fusion_json(fusion_info(deploy.skeleton(), original, name=files.name), files.fusion)
    return files.deploy, files.fake_quant, files.fusion


def write_companions(result: Result, deploy: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the fusion file and the record of a result whose models are saved already.

    Args:
        result: What `onnxq.quantize` gave for Ascend.
        deploy: Where its model was saved.

    Returns:
        The files.

    Raises:
        OnnxqError: If one cannot be written.
    """
    files = DeployedFiles.beside(deploy)
    original = (result.original or result.graph).skeleton()
    write_fusion_json(fusion_info(result.graph.skeleton(), original, name=files.name), files.fusion)
    write_record(record_of(result.factors, fp16=result.recipe.fp16_scales), files.record)
    return files.fusion, files.record


def record_of(factors: Mapping[str, LayerFactors], *, fp16: bool) -> Record:
    """The record of what was chosen.

    Args:
        factors: By layer.
        fp16: Whether the scales were rounded to float16.
    """
    return Record(factors, frozenset(factors) if fp16 else frozenset())
