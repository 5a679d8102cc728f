"""Quantizing in stages: measure once, choose numbers as often as wanted, insert them later from a record.

measured = onnxq.stages.measure("model.onnx", data, recipe=recipe)
chosen = measured.choose()  # or another recipe, on the same statistics
inserted = onnxq.stages.insert(chosen.graph, chosen.factors)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.readers import DataLike
from onnxq.context import QuantContext
from onnxq.errors import RecipeError
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassManager, PassReport
from onnxq.passes.apply_balance import ApplyBalance
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.collect_factors import CollectFactors
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.keep_float_weights import KeepFloatWeights
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.select_layers import SelectLayers
from onnxq.passes.split_linear import SplitLinear
from onnxq.passes.use_factors import UseFactors
from onnxq.pipeline import (
    ModelLike,
    Progress,
    RecipeLike,
    choice,
    context_for,
    deployment,
    measurement,
    open_model,
    preparation,
    reader_for,
    recipe_of,
    run_passes,
    twin,
)
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.result import Result

Rounded = dict[tuple[str, str, bytes], NDArray[np.float32]]
"""Weights that AdaRound has rounded, by what they were rounded for."""
_MEASURED = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES, Fact.STATS})


@dataclass(frozen=True)
class Chosen:
    """A float model and the numbers to quantize it with.

    Attributes:
        graph: The float model in the form it is quantized in: folded, balanced, with rounded weights.
        factors: The numbers by layer.
        plan: What is quantized, and why the rest is not.
        recipe: What was asked for.
        reports: One per pass.
        samples: How many samples calibration used.
        notes: What a user should know, a sentence each.
    """

    graph: GraphModel
    factors: Mapping[str, LayerFactors]
    plan: Plan
    recipe: Recipe
    reports: tuple[PassReport, ...] = ()
    samples: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A prepared float model and the statistics of its activations.

    Attributes:
        graph: The model; it is not changed any more.
        context: Its statistics, data and plan.
        notes: What a user should know, a sentence each.
    """

    graph: GraphModel
    context: QuantContext = field(repr=False)
    notes: tuple[str, ...] = ()

    def choose(self, recipe: RecipeLike | None = None, *, rounded: Rounded | None = None) -> Chosen:
        """Choose scales, zero points and rounded weights; the calibration is not repeated.

        Args:
            recipe: What is wanted, if not what was measured for. It may differ in everything but what was done
                to the float model before it was measured: fusion, equalization, balancing.
            rounded: What AdaRound has done for other recipes, to be taken again for layers with the same numbers,
                and added to: saves time, and makes the result depend on what was chosen before.

        Raises:
            RecipeError: If the recipe differs in more, or does not fit the model.
        """
        wanted = self.context.recipe if recipe is None else recipe_of(recipe, None)
        _check_same_preparation(self.context.recipe, wanted)
        graph = self.graph.copy()
        ctx = replace(self.context, recipe=wanted, params={}, ranges={}, factors={}, reports=[], clusters={})
        ctx.rounded = {} if rounded is None else rounded
        steps: list[Pass] = [SelectLayers(), *choice(wanted), CollectFactors()]
        run_passes(PassManager(steps, initial=_MEASURED), graph, ctx)
        reports = (*self.context.reports, *ctx.reports)
        notes = dict.fromkeys((*self.notes, *_notes(ctx)))
        return Chosen(graph, dict(ctx.factors), ctx.plan or Plan(), wanted, reports, ctx.samples, tuple(notes))


def _check_same_preparation(old: Recipe, new: Recipe) -> None:
    for part in ("target", "fuse", "equalize", "balance"):
        if getattr(old, part) != getattr(new, part):
            raise RecipeError(f"{part}: differs from the recipe that the model was measured for; measure it anew")


def _notes(ctx: QuantContext) -> tuple[str, ...]:
    return tuple(n for r in ctx.reports if r.name == SelectLayers.__name__ for n in r.notes)


def measure(
    model: ModelLike,
    data: DataLike | None,
    *,
    recipe: RecipeLike | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Prepare a float model and measure its activations.

    Args:
        model: The float model; it is not changed.
        data: Calibration samples, as for `onnxq.quantize`.
        recipe: What is wanted; its target must be one that takes records (ascend).
        threads: Threads of calibration, 0 for all cores. It does not change the result.
        progress: Is told how far calibration is.

    Raises:
        OnnxqError: If the model, the data or the recipe cannot be used; the message says what to do.
    """
    recipe_ = recipe_of(recipe, None)
    graph, _ = open_model(model)
    reader, notes = reader_for(graph, data, recipe_)
    ctx = context_for(recipe_, reader, threads, progress)
    run_passes(PassManager([*preparation(recipe_, ctx.target), *measurement(recipe_)]), graph, ctx)
    if reader is not None:
        notes += reader.notes
    return Measured(graph, ctx, (*graph.notes, *notes))


@dataclass(frozen=True)
class Inserted:
    """A model for Ascend's compiler and its twin.

    Attributes:
        deploy: The model with Ascend's operators.
        fake_quant: The same in standard operators, which runs here.
        reports: One per pass.
    """

    deploy: GraphModel
    fake_quant: GraphModel
    reports: tuple[PassReport, ...] = ()


def insert(
    model: ModelLike,
    factors: Mapping[str, LayerFactors],
    *,
    recipe: RecipeLike | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Inserted:
    """Quantize a float model with numbers that are known already.

    Layers that have no factors stay float.

    Args:
        model: The float model the factors were found for, or the one it was made of.
        factors: The numbers by layer, as a record holds them.
        recipe: Its `fuse` says what is folded first, its `fp16_scales` how dequantization words are cut; the
            rest has no effect. By default everything is folded but the layers whose factors forbid it.
        metadata: Entries for the models' `metadata_props`.

    Raises:
        RecordError: If the factors do not fit the model.
        OnnxqError: If the model cannot be used.
    """
    recipe_ = recipe_of({"target": "ascend"} if recipe is None else recipe, None)
    kept = tuple(sorted({name for name, f in factors.items() if f.skip_fusion} - set(recipe_.fuse.skip_layers)))
    recipe_ = recipe_.replace(fuse=recipe_.fuse.replace(skip_layers=(*recipe_.fuse.skip_layers, *kept)))
    graph, _ = open_model(model)
    ctx = context_for(recipe_, None, 1, None)
    if ctx.target.insertion == "qdq":
        raise RecipeError(f"target {ctx.target.name!r} takes no records; use ascend")
    ctx.metadata |= dict(metadata or {})
    run_passes(
        PassManager([*preparation(recipe_, ctx.target, select=False), UseFactors(factors), ApplyBalance()]), graph, ctx
    )
    fake_quant = graph.copy()
    run_passes(deployment(), graph, ctx)
    run_passes(twin(), fake_quant, ctx)
    return Inserted(graph, fake_quant, tuple(ctx.reports))


def name_nodes(model: ModelLike) -> GraphModel:
    """The model with a unique name for every node, and otherwise as it was.

    Args:
        model: The model; it is not changed.

    Raises:
        OnnxqError: If it cannot be used.
    """
    graph, _ = open_model(model)
    run_passes(PassManager([AssignNames()]), graph, context_for(Recipe(), None, 1, None))
    return graph


def rewrite(model: ModelLike, passes: Sequence[Pass]) -> GraphModel:
    """The float model after some passes of the user's: its nodes have unique names and its constants no nodes.

    Args:
        model: The model; it is not changed.
        passes: They find a named graph with lifted constants and known element types.

    Raises:
        RecipeError: If a pass needs more than that, and none in front of it provides it.
        PassError: If a pass fails.
        OnnxqError: If the model cannot be used.
    """
    graph, _ = open_model(model)
    prepared: list[Pass] = [AssignNames(), LiftConstants(), InferShapes()]
    run_passes(PassManager([*prepared, *passes]), graph, context_for(Recipe(), None, 1, None))
    return graph


def split_linear(nodes: Sequence[str], along: Literal["outputs", "inputs"], parts: int = 1) -> Pass:
    """The pass that computes linear layers in parts, as parallel devices do; see `SplitLinear`.

    Args:
        nodes: Names of the layers: Gemm or MatMul.
        along: Whether each part gives some outputs, or takes some inputs.
        parts: How many.

    Raises:
        RecipeError: If there are less than one.
    """
    return SplitLinear(tuple(nodes), along, parts)


def keep_float_weights(result: Result) -> Result:
    """A quantized model that computes the same and holds its weights as floats; see `KeepFloatWeights`.

    Args:
        result: What `onnxq.quantize` gave.

    Raises:
        RecipeError: If the backend does not take QuantizeLinear and DequantizeLinear.
    """
    floats = result.prepared or result.original
    if not result.changed or floats is None:
        return result
    if result.twin is not None:
        raise RecipeError(f"target {result.recipe.target!r} stores weights as codes: they cannot stay floats")
    graph = result.graph.copy()
    weights = tuple((w.node, w.index) for w in result.plan.weights)
    steps = PassManager([KeepFloatWeights(floats, weights)], initial=frozenset({Fact.QUANTIZED}))
    ctx = context_for(result.recipe, None, 1, None)
    run_passes(steps, graph, ctx)
    return replace(result, graph=graph, reports=(*result.reports, *ctx.reports))
