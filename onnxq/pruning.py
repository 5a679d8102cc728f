"""Pruning without training: channels removed, or two of every four weights made 0.

pruned = onnxq.prune("model.onnx", recipe={"prune": {"kind": "channels", "ratio": 0.3}})
pruned.save("smaller.onnx")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnxq._version import __version__
from onnxq.costs import ModelCost, model_cost
from onnxq.errors import RecipeError
from onnxq.graph import GraphModel
from onnxq.modelio import file_sha256, save_model
from onnxq.opinfo import OPS
from onnxq.passes._base import PassManager, PassReport
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.mask_weights import MaskWeights
from onnxq.passes.remove_channels import RemoveChannels
from onnxq.passes.sweep import Sweep
from onnxq.pipeline import ModelLike, RecipeLike, context_for, open_model, pruning, recipe_of, run_passes
from onnxq.recipe import ChannelPrune, Recipe, Rule, TwoOfFour

__all__ = ["Pruned", "PrunedLayer", "prune", "sparing"]


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """What became of a layer.

    Attributes:
        node: Its name.
        op_type: Its operator type.
        before: Output channels of the model as it came.
        after: Output channels that are left.
        sparse: Whether two of every four of its weights are 0.
        reason: Why nothing was pruned; empty where something was.
    """

    node: str
    op_type: str
    before: int
    after: int
    sparse: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class Pruned:
    """A pruned model and what was done to it.

    Attributes:
        graph: The model.
        layers: What became of each layer with a weight.
        before: What the model cost for one sample.
        after: What it costs now.
        recipe: What was asked for.
        reports: One per pass.
        notes: What a user should know, a sentence each.
        source: The file the model came from.
    """

    graph: GraphModel = field(repr=False)
    layers: tuple[PrunedLayer, ...]
    before: ModelCost = field(repr=False)
    after: ModelCost = field(repr=False)
    recipe: Recipe = field(repr=False)
    reports: tuple[PassReport, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    source: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether anything was pruned."""
        return any(layer.sparse or layer.after < layer.before for layer in self.layers)

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
        save_model(self.graph, Path(path), external_data=external_data)
        return Path(path)

    def to_dict(self) -> dict[str, object]:
        """A summary of plain mappings, lists, strings and numbers."""
        return {
            "changed": self.changed,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
            "notes": list(self.notes),
            "recipe": self.recipe.to_dict(),
        }


def prune(model: ModelLike, *, recipe: RecipeLike) -> Pruned:
    """Prune a model as a recipe says: `Recipe.prune`, and ``prune`` of its rules.

    Channels are removed with all that depends on them (see `RemoveChannels`); weights that are to be sparse get two
    zeros in every four (see `MaskWeights`). Nothing is quantized and nothing is trained: for that give the same recipe
    to `onnxq.quantize` or `onnxq.qat.artifacts.create`.

    Args:
        model: The model; it is not changed.
        recipe: What is wanted.

    Raises:
        OnnxqError: If the model or the recipe cannot be used, or the recipe prunes nothing.
    """
    recipe_ = recipe_of(recipe, None)
    kinds = pruning(recipe_)
    if not kinds & {ChannelPrune, TwoOfFour}:
        raise RecipeError("the recipe prunes nothing: give it prune: {kind: channels, ratio: 0.3}, or prune: 2:4")
    graph, source = open_model(model)
    ctx = context_for(recipe_, None, 1, None)
    run_passes(PassManager([AssignNames(), LiftConstants(), FoldConstants(), InferShapes()]), graph, ctx)
    recipe_.check_names(((str(n.name), str(n.op)) for n in graph.nodes()), op_types=frozenset(OPS))
    before = model_cost(graph)
    steps = [AssignNames(), LiftConstants(), InferShapes(), RemoveChannels(), InferShapes(), MaskWeights(), Sweep()]
    run_passes(PassManager(steps), graph, ctx)
    after = model_cost(graph)
    graph.metadata |= {"onnxq.version": __version__, "onnxq.recipe_sha256": recipe_.digest()}
    if source is not None:
        graph.metadata["onnxq.model_sha256"] = file_sha256(source)
    layers = _layers(graph, before, after, ctx.reports, {m.weight for m in ctx.masked}, kinds)
    notes = tuple(graph.notes)
    if not any(layer.sparse or layer.after < layer.before for layer in layers):
        notes += ("nothing of this model could be pruned: see the reasons",)
    return Pruned(graph, layers, before, after, recipe_, tuple(ctx.reports), notes, source)


def sparing(recipe: RecipeLike, model: ModelLike, names: Sequence[str]) -> Recipe:
    """A recipe that does not prune some layers.

    Args:
        recipe: What is wanted of the others.
        model: The model.
        names: Names of nodes, globs over names, or operator types.

    Raises:
        RecipeError: If one of them matches nothing in the model.
    """
    recipe_ = recipe_of(recipe, None)
    graph, _ = open_model(model)
    run_passes(PassManager([AssignNames()]), graph, context_for(recipe_, None, 1, None))
    rules = []
    for name in names:
        level = "name" if any(mark in name for mark in "*?[") else "node" if graph.has_node(name) else "op_type"
        rules.append(Rule.model_validate({"match": {level: name}, "prune": "none"}))
    spared = recipe_.replace(rules=(*recipe_.rules, *rules))
    spared.check_names(((str(n.name), str(n.op)) for n in graph.nodes()), op_types=frozenset(OPS))
    return spared


def _layers(
    graph: GraphModel,
    before: ModelCost,
    after: ModelCost,
    reports: list[PassReport],
    masked: set[str],
    kinds: frozenset[type],
) -> tuple[PrunedLayer, ...]:
    old = {n.node: n for n in before.nodes}
    passes = {RemoveChannels.__name__: ChannelPrune, MaskWeights.__name__: TwoOfFour}
    asked = [r for r in reports if passes.get(r.name) in kinds]
    told = {skip.node: skip.reason for report in asked for skip in report.skipped}
    found = []
    for cost in after.nodes:
        if not cost.channels:
            continue
        sparse = str(graph.node(cost.node).inputs[1].name) in masked
        was = old[cost.node].channels if cost.node in old else cost.channels
        reason = "" if sparse or cost.channels < was else told.get(cost.node, "the recipe does not prune it")
        found.append(PrunedLayer(cost.node, cost.op_type, was, cost.channels, sparse, reason))
    return tuple(found)
