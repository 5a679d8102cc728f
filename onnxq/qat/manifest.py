"""What belongs to training artifacts besides models and checkpoint: what parameters mean, and what they came from."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import TrainingError
from onnxq.learned import LearnedRange, LearnedScale, spec_from_dict, spec_to_dict
from onnxq.modelio import file_sha256
from onnxq.qat.losses import LossInput
from onnxq.recipe import Recipe
from onnxq.spec import QuantParams

MANIFEST = "manifest.json"
FLOAT_MODEL = "float_model.onnx"
TEACHER_MODEL = "teacher_model.onnx"
"""The model before it was pruned, where training looks at its outputs."""
FORMAT = 1


@dataclass(frozen=True)
class Mask:
    """Weights that are kept or 0, by a mask that training does not change.

    Attributes:
        weight: Name of the initializer that is trained.
        mask: Name of the initializer with its mask of ones and zeros.
        axis: Axis of the input channels, along which two of every four are kept.
        update_freq: The mask is chosen anew every so many steps; 0: never.
    """

    weight: str
    mask: str
    axis: int
    update_freq: int = 0


@dataclass(frozen=True)
class Manifest:
    """All that is needed to train artifacts, and to make a quantized model of what training has left.

    Attributes:
        recipe: What was asked for.
        inputs: The network's inputs: names and element types.
        outputs: Names of its outputs, the one that the loss looks at first.
        loss_inputs: What the loss reads besides.
        classes: How many classes the output has, where labels are class indexes; else 0.
        trained: Names of the initializers that are trained, those of quantizers included.
        frozen: Names of initializers that are kept in the checkpoint without being trained.
        ranges: What is learned of activations.
        scales: What is learned of weights.
        fixed: Numbers of weights whose scale stays what it was, by key.
        masks: Weights that are sparse.
        kept: Which output channels are left of the layers that lost some, by node name.
        model_sha256: Of the float model the artifacts were made of.
        version: The onnxq they were made with.
    """

    recipe: Recipe
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    loss_inputs: tuple[LossInput, ...]
    classes: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    ranges: tuple[LearnedRange, ...] = ()
    scales: tuple[LearnedScale, ...] = ()
    fixed: Mapping[str, QuantParams] = field(default_factory=dict)
    masks: tuple[Mask, ...] = ()
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model_sha256: str = ""
    version: str = ""

    def write(self, directory: Path) -> Path:
        """Write it into a folder of artifacts."""
        content = {
            "format": FORMAT,
            "version": self.version,
            "model_sha256": self.model_sha256,
            "inputs": dict(self.inputs),
            "outputs": list(self.outputs),
            "loss_inputs": [asdict(i) for i in self.loss_inputs],
            "classes": self.classes,
            "trained": list(self.trained),
            "frozen": list(self.frozen),
            "ranges": [r.to_dict() for r in self.ranges],
            "scales": [s.to_dict() for s in self.scales],
            "fixed": {key: _params_to_dict(params) for key, params in self.fixed.items()},
            "masks": [asdict(m) for m in self.masks],
            "kept": {name: list(channels) for name, channels in self.kept.items()},
            "recipe": self.recipe.to_dict(),
        }
        path = directory / MANIFEST
        write_atomically(path, json.dumps(content, indent=1, allow_nan=False))
        return path

    def is_for(self, model: Path, recipe: Recipe) -> bool:
        """Whether the artifacts are those of a model and a recipe, whatever they were calibrated with."""
        same = recipe.replace(calibration=self.recipe.calibration)
        return self.model_sha256 == file_sha256(model) and self.recipe.digest() == same.digest()

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Read the manifest of a folder of artifacts.

        Raises:
            TrainingError: If there is none, or it cannot be used.
        """
        path = directory / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TrainingError(f"{path} does not exist; make the artifacts with 'onnxq qat create'") from None
        except (ValueError, OSError) as err:
            raise TrainingError(f"{path} cannot be read: {err}") from err
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else content
            raise TrainingError(f"{path}: format {found!r} is not known; make the artifacts anew with this onnxq")
        try:
            return _from_dict(content)
        except (KeyError, TypeError, ValueError) as err:
            raise TrainingError(f"{path} is damaged ({type(err).__name__}: {err}); make the artifacts anew") from err


def _from_dict(content: Mapping[str, Any]) -> Manifest:
    return Manifest(
        recipe=Recipe.from_dict(content["recipe"]),
        inputs={str(name): str(dtype) for name, dtype in content["inputs"].items()},
        outputs=tuple(content["outputs"]),
        loss_inputs=tuple(LossInput(**i) for i in content["loss_inputs"]),
        classes=int(content["classes"]),
        trained=tuple(content["trained"]),
        frozen=tuple(content["frozen"]),
        ranges=tuple(LearnedRange.from_dict(r) for r in content["ranges"]),
        scales=tuple(LearnedScale.from_dict(s) for s in content["scales"]),
        fixed={key: _params_from_dict(params) for key, params in content["fixed"].items()},
        masks=tuple(Mask(**m) for m in content["masks"]),
        kept={str(name): tuple(map(int, channels)) for name, channels in content["kept"].items()},
        model_sha256=content["model_sha256"],
        version=content["version"],
    )


def _params_to_dict(params: QuantParams) -> dict[str, object]:
    return {
        "spec": spec_to_dict(params.spec),
        "scale": params.scale.astype(np.float64).tolist(),
        "zero_point": params.zero_point.tolist(),
    }


def _params_from_dict(content: Mapping[str, Any]) -> QuantParams:
    scale = np.asarray(content["scale"], np.float32)
    return QuantParams(spec_from_dict(content["spec"]), scale, np.asarray(content["zero_point"], np.int32))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is whole or not there."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)  # noqa: PTH105 - atomic, and Path.replace is the same call
    finally:
        draft.unlink(missing_ok=True)
