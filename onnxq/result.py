"""What quantizing a model gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxq.errors import ModelError
from onnxq.graph import GraphModel
from onnxq.modelio import save_model
from onnxq.passes._base import PassReport
from onnxq.plan import Plan
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from onnxq.algos.weight.codes import WeightCodes
    from onnxq.algos.weight.mixed_bit import FoundStep
    from onnxq.factors import LayerFactors
    from onnxq.spec import QuantParams


@dataclass(frozen=True)
class Result:
    """A quantized model and how it came about.

    Attributes:
        graph: The model.
        plan: What was quantized, and why the rest was not.
        params: Scale and zero point by tensor name; weights by their key in the plan.
        reports: One per pass.
        recipe: What was asked for.
        samples: How many samples calibration used.
        notes: What a user should know, a sentence each.
        source: The file the float model came from.
        original: The model as it came; it is what `save` writes if nothing was quantized.
        twin: The same model in standard operators, where the target's own do not run here.
        factors: The numbers by layer, for targets that want them so.
        prepared: The float model in the form in which it was quantized: with the same names, the same function.
        weight_codes: How weights became codes where only they did, by their keys in the plan.
        steps: What the search for the step of each of these weights found, where there was one, by the same keys.
    """

    graph: GraphModel
    plan: Plan
    params: Mapping[str, QuantParams]
    reports: tuple[PassReport, ...]
    recipe: Recipe
    samples: int
    notes: tuple[str, ...]
    source: Path | None = None
    original: GraphModel | None = field(default=None, repr=False)
    twin: GraphModel | None = field(default=None, repr=False)
    factors: Mapping[str, LayerFactors] = field(default_factory=dict)
    prepared: GraphModel | None = field(default=None, repr=False)
    weight_codes: Mapping[str, WeightCodes] = field(default_factory=dict, repr=False)
    steps: Mapping[str, FoundStep] = field(default_factory=dict, repr=False)

    @property
    def changed(self) -> bool:
        """Whether anything was quantized."""
        return bool(self.plan)

    @property
    def model(self) -> onnx.ModelProto:
        """The model as a protobuf with all weights inside.

        Raises:
            GraphError: If it is not valid.
        """
        return (self.graph if self.changed or self.original is None else self.original).to_proto()

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> Path:
        """Write the model, all of it or nothing; the unchanged original where nothing was quantized.

        A twin goes beside it: for ``x.onnx`` or ``x_deploy_model.onnx`` to ``x_fake_quant_model.onnx``.

        Args:
            path: The file to write; its folder must exist.
            external_data: As for `onnxq.save_model`.

        Raises:
            ModelError: If it cannot be written.
        """
        path = Path(path)
        if self.changed or self.original is None:
            save_model(self.graph, path, external_data=external_data)
            if self.twin is not None:
                save_model(self.twin, twin_path(path), external_data=external_data)
        elif self.source is not None and not self.original.external_data and not external_data:
            _copy(self.source, path)
        else:
            save_model(self.original, path, external_data=external_data)
        return path

    def to_dict(self) -> dict[str, object]:
        """A summary of plain mappings, lists, strings and numbers."""
        return {
            "changed": self.changed,
            "counts": self.plan.counts(),
            "float": [
                {"node": d.node, "op_type": d.op_type, "reason": d.reason} for d in self.plan.left_float()
            ],
            "passes": [{"name": r.name, "seconds": round(r.seconds, 4), "changed": r.changed} for r in self.reports],
            "notes": list(self.notes),
            "samples": self.samples,
            "recipe": self.recipe.to_dict(),
        }  # fmt: skip


def twin_path(path: Path) -> Path:
    """Where the twin of a model is written."""
    stem = path.stem.removesuffix("deploy_model").removesuffix("_")
    return path.with_name(f"{stem}_fake_quant_model.onnx" if stem else "fake_quant_model.onnx")


def _copy(source: Path, path: Path) -> None:
    if path.exists() and source.samefile(path):
        return
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        shutil.copyfile(source, scratch)
        scratch.replace(path)
    except OSError as err:
        scratch.unlink(missing_ok=True)
        raise ModelError(f"cannot write {path}: {err.strerror or err}") from err
