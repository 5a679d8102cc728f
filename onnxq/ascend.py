"""Models for Ascend read back: run here, brought to other backends, and made of models with Q/DQ pairs.

simulated = onnxq.ascend.simulate_model("net_deploy_model.onnx")   # runs in ONNX Runtime, exact sums
portable = onnxq.ascend.deploy_to_qdq("net_deploy_model.onnx")     # QuantizeLinear and DequantizeLinear
converted = onnxq.ascend.convert_qdq("net_qat.onnx")               # a deploy model, its twin and its record
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxq.errors import GraphError, ModelError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.modelio import save_model
from onnxq.passes._base import Fact, Pass, PassManager, PassReport
from onnxq.passes.ascend_to_qdq import AscendToQdq
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.quantize_outputs import QuantizeOutputs
from onnxq.passes.read_qdq import ReadQdq
from onnxq.passes.simulate_ascend import SimulateAscend
from onnxq.passes.sweep import Sweep
from onnxq.pipeline import ModelLike, context_for, open_model, recipe_of, run_passes
from onnxq.stages import insert

__all__ = ["Converted", "Rewritten", "convert_qdq", "deploy_to_qdq", "simulate_model"]

_RECIPE: Mapping[str, object] = {"target": "ascend", "fuse": {"batchnorm": False}}
"""Numbers of a model with Q/DQ pairs belong to its weights as they are: nothing is folded into them."""


@dataclass(frozen=True)
class Rewritten:
    """A model that was made of another one.

    Attributes:
        graph: The model.
        reports: One per pass.
        notes: What a user should know, a sentence each.
    """

    graph: GraphModel
    reports: tuple[PassReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> onnx.ModelProto:
        """The model as a protobuf with all weights inside."""
        return self.graph.to_proto()

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> Path:
        """Write the model, all of it or nothing.

        Args:
            path: The file to write; its folder must exist.
            external_data: As for `onnxq.save_model`.

        Raises:
            ModelError: If it cannot be written.
        """
        path = Path(path)
        save_model(self.graph, path, external_data=external_data)
        return path


@dataclass(frozen=True)
class Converted:
    """What a model with Q/DQ pairs becomes for Ascend.

    Attributes:
        deploy: The model with Ascend's operators.
        fake_quant: The same in standard operators, which runs here.
        floats: The float model that the factors belong to.
        factors: The numbers by layer, as a record holds them.
        skipped: What was left in floats, and why: ``node: reason``.
        notes: What a user should know, a sentence each.
    """

    deploy: Rewritten
    fake_quant: Rewritten
    floats: Rewritten
    factors: Mapping[str, LayerFactors]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def simulate_model(model: ModelLike) -> Rewritten:
    """Rewrite a deploy model, AMCT's or ours, into integer operators that ONNX Runtime executes exactly.

    Args:
        model: The deploy model; it is not changed.

    Raises:
        ModelError: If it cannot be read.
        GraphError: If it holds something that cannot be computed exactly; the message names the node.
    """
    return _rewritten(model, SimulateAscend())


def deploy_to_qdq(model: ModelLike) -> Rewritten:
    """Rewrite a deploy model, AMCT's or ours, with QuantizeLinear and DequantizeLinear.

    Args:
        model: The deploy model; it is not changed.

    Raises:
        ModelError: If it cannot be read.
        GraphError: If it holds something that Q/DQ cannot express; the message names the node.
    """
    return _rewritten(model, AscendToQdq())


def _rewritten(model: ModelLike, step: Pass) -> Rewritten:
    graph, source = open_model(model)
    ctx = context_for(recipe_of({"target": "ascend"}, None), None, 1, None)
    run_passes(PassManager([AssignNames(), LiftConstants(), step, Sweep()]), graph, ctx)
    changed = next(r for r in ctx.reports if r.name == step.name)
    if not changed.changed:
        raise ModelError(
            f"{source or 'the model'} has no Ascend operator (AscendQuant, AscendDequant …); give the deploy model, "
            "which ends with _deploy_model.onnx"
        )
    return Rewritten(graph, tuple(ctx.reports), (*graph.notes, *changed.notes))


def convert_qdq(model: ModelLike) -> Converted:
    """Turn a model with Q/DQ pairs, of a training tool or a quantizer, into one for Ascend.

    Args:
        model: The model; it is not changed.

    Raises:
        ModelError: If it cannot be read.
        GraphError: If its numbers cannot be expressed: pairs that differ, weights that are not symmetric, an
            activation with a scale per channel, or no layer with pairs at all.
        RecordError: If a layer with its numbers is none that Ascend computes.
    """
    graph, _ = open_model(model)
    recipe = recipe_of(_RECIPE, None)
    ctx = context_for(recipe, None, 1, None)
    run_passes(PassManager([AssignNames(), LiftConstants(), FoldConstants(), ReadQdq(), Sweep()]), graph, ctx)
    report = next(r for r in ctx.reports if r.name == ReadQdq.__name__)
    if not ctx.factors:
        found = "".join(f"; {s.node}: {s.reason}" for s in report.skipped[:3])
        raise GraphError(f"there is no layer with Q/DQ pairs at its activation and its weight in this model{found}")
    inserted = insert(graph, ctx.factors, recipe=recipe)
    outputs = PassManager([QuantizeOutputs()], initial=frozenset({Fact.QUANTIZED}))
    run_passes(outputs, inserted.deploy, ctx)
    return Converted(
        Rewritten(inserted.deploy, inserted.reports),
        Rewritten(inserted.fake_quant, inserted.reports),
        Rewritten(graph, (report,)),
        dict(ctx.factors),
        tuple(f"{s.node}: {s.reason}" for s in report.skipped),
        (*graph.notes, *report.notes),
    )
