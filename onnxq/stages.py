"""Quantizing in stages: measure once, choose numbers as often as wanted, insert them later from a record.

measured = onnxq.stages.measure("model.onnx", data, recipe=recipe)
result = measured.quantize()  # or another recipe, on the same statistics
chosen = measured.choose()
inserted = onnxq.stages.insert(chosen.graph, chosen.factors)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.known import KnownStats
from onnxq.calib.readers import DataLike, Reader
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
from onnxq.passes.upgrade_opset import UpgradeOpset
from onnxq.passes.use_factors import UseFactors
from onnxq.pipeline import (
    KeepPrepared,
    ModelLike,
    Progress,
    RecipeLike,
    balancing,
    build,
    calibration,
    carry_out,
    choice,
    context_for,
    deployment,
    insertion,
    open_model,
    opsets,
    preparation,
    reader_for,
    recipe_of,
    run_passes,
    twin,
)
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.result import Result
from onnxq.spec import QuantParams

Rounded = dict[tuple[str, str, bytes], NDArray[np.float32]]
"""Weights that AdaRound has rounded, by what they were rounded for."""
_SELECTABLE = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})


@dataclass(frozen=True)
class Chosen:
    """A float model and the numbers to quantize it with.

    Attributes:
        graph: The float model in the form it is quantized in: folded, balanced, with rounded weights.
        factors: The numbers by layer, for targets that take records.
        plan: What is quantized, and why the rest is not.
        recipe: What was asked for.
        reports: One per pass.
        samples: How many samples calibration used.
        notes: What a user should know, a sentence each.
        params: Scale and zero point by key of the plan.
        prepared: The float model with the same names, before weights were rounded and biases corrected.
    """

    graph: GraphModel
    factors: Mapping[str, LayerFactors]
    plan: Plan
    recipe: Recipe
    reports: tuple[PassReport, ...] = ()
    samples: int = 0
    notes: tuple[str, ...] = ()
    params: Mapping[str, QuantParams] = field(default_factory=dict, repr=False)
    prepared: GraphModel | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Measured:
    """A prepared float model and the statistics of its activations.

    Attributes:
        graph: The model; it is not changed any more.
        context: Its statistics, data and plan.
        notes: What a user should know, a sentence each.
        original: The model as it came.
        source: The file it came from.
        data: The samples as they were given.
    """

    graph: GraphModel
    context: QuantContext = field(repr=False)
    notes: tuple[str, ...] = ()
    original: GraphModel | None = field(default=None, repr=False)
    source: Path | None = None
    data: DataLike | None = field(default=None, repr=False)
    _forms: dict[tuple[int, int], _Form] = field(default_factory=dict, repr=False, compare=False)

    @property
    def recipe(self) -> Recipe:
        """What the model was measured for."""
        return self.context.recipe

    def choose(self, recipe: RecipeLike | None = None, *, rounded: Rounded | None = None) -> Chosen:
        """Choose scales, zero points and rounded weights; the calibration is not repeated.

        Args:
            recipe: What is wanted, if not what was measured for. It may differ in everything but what was done
                to the float model before it was measured: fusion, equalization, balancing, pruning.
            rounded: What AdaRound has done for other recipes, to be taken again for layers with the same numbers,
                and added to: saves time, and makes the result depend on what was chosen before.

        Raises:
            RecipeError: If the recipe differs in more, does not fit the model, or has no numbers to be chosen.
            DataError: If something has to be measured that is not known yet, and there are no data.
        """
        wanted = self.recipe if recipe is None else recipe_of(recipe, None)
        if wanted.scheme.kind != "static":
            raise RecipeError(f"scheme: {wanted.scheme.kind} takes no measured numbers; use quantize")
        form = self._form(wanted)
        graph, ctx = form.graph.copy(), form.start(wanted, self.context.reader, rounded)
        prepared = KeepPrepared()
        steps: list[Pass] = [SelectLayers(), *calibration(wanted), *choice(wanted)]
        if ctx.target.insertion != "qdq":
            steps.append(CollectFactors())
        run_passes(PassManager(steps, (prepared,), _SELECTABLE), graph, ctx)
        notes = tuple(dict.fromkeys((*self.notes, *_notes(ctx))))
        plan = ctx.plan or Plan()
        factors, params = dict(ctx.factors), dict(ctx.params)
        return Chosen(graph, factors, plan, wanted, tuple(ctx.reports), ctx.samples, notes, params, prepared.graph)

    def quantize(self, recipe: RecipeLike | None = None, *, rounded: Rounded | None = None) -> Result:
        """Quantize with the statistics there are: what `onnxq.quantize` gives, without its calibration.

        What a recipe needs and nothing measured before says is measured then, once; `measure` takes such recipes
        as `also`. A recipe that needs another operator set has statistics of its own, since kernels differ.
        Statistics of tensors that were measured beside others can differ in the last bit from those that
        `onnxq.quantize` finds for them alone, where the runtime would have fused nodes across one of the others.
        Layers that were balanced stay balanced where the recipe leaves them float.

        Args:
            recipe: As for `choose`. One that stores weights only or quantizes dynamically has no statistics: it is
                carried out from the beginning.
            rounded: As for `choose`.

        Raises:
            RecipeError: If the recipe differs in more, or does not fit the model.
            DataError: If something has to be measured that is not known yet, and there are no data.
        """
        wanted = self.recipe if recipe is None else recipe_of(recipe, None)
        original = self.graph if self.original is None else self.original
        if wanted.scheme.kind != "static":
            graph = original.copy()
            reader, notes = reader_for(graph, self.data, wanted)
            ctx = context_for(wanted, reader, self.context.threads, self.context.progress)
            manager = build(wanted, ctx.target)
        else:
            form, notes = self._form(wanted), self.notes
            graph, ctx = form.graph.copy(), form.start(wanted, self.context.reader, rounded)
            steps = [SelectLayers(), *calibration(wanted), *choice(wanted), *insertion(ctx.target)]
            manager = PassManager(steps, initial=_SELECTABLE)
        return carry_out(manager, graph, ctx, original=original, source=self.source, notes=notes)

    def _form(self, wanted: Recipe) -> _Form:
        """The model at the operator set that a recipe needs."""
        _check_same_preparation(self.recipe, wanted)
        sets = opsets(wanted, self.context.target)
        if sets not in self._forms:
            original = self.graph if self.original is None else self.original
            ctx = context_for(self.recipe, None, self.context.threads, self.context.progress)
            ctx.reader = self.context.reader
            self._forms[sets] = _prepare(original.copy(), ctx, sets)
        return self._forms[sets]


@dataclass(frozen=True, eq=False)
class _Form:
    """A model ready to be measured, and what the passes that made it have left behind."""

    graph: GraphModel
    context: QuantContext

    def start(self, recipe: Recipe, reader: Reader | None, rounded: Rounded | None = None) -> QuantContext:
        """A context that goes on from here."""
        ctx = self.context
        return replace(
            ctx, recipe=recipe, reader=reader, seed=recipe.calibration.seed, plan=None, stats={}, ranges={}, params={},
            factors={}, moments=dict(ctx.moments), balance=dict(ctx.balance), kept=dict(ctx.kept), clusters={},
            reports=list(ctx.reports), metadata=dict(ctx.metadata), rounded={} if rounded is None else rounded,
        )  # fmt: skip

    def measure(self, recipes: Sequence[Recipe], reader: Reader | None) -> QuantContext:
        """Measure what some recipes need in one run; the first one's context."""
        plans = []
        for recipe in recipes:
            ctx = self.start(recipe, reader)
            run_passes(PassManager([SelectLayers()], initial=_SELECTABLE), self.graph, ctx)
            plans.append(ctx.plan or Plan())
        first = self.start(recipes[0], reader)
        steps = PassManager([SelectLayers(), calibration(recipes[0], plans[1:])[0]], initial=_SELECTABLE)
        run_passes(steps, self.graph, first)
        return first


def _prepare(graph: GraphModel, ctx: QuantContext, sets: tuple[int, int]) -> _Form:
    steps = preparation(ctx.recipe, ctx.target, select=False)
    steps = [UpgradeOpset(*sets) if isinstance(step, UpgradeOpset) else step for step in steps]
    run_passes(PassManager([*steps, SelectLayers(), *balancing(ctx.recipe)]), graph, ctx)
    ctx.reports = [r for r in ctx.reports if r.name != SelectLayers.__name__]
    ctx.known = KnownStats()
    return _Form(graph, ctx)


def _check_same_preparation(old: Recipe, new: Recipe) -> None:
    parts = _preparation_of(new)
    for part, before in _preparation_of(old).items():
        if before != parts[part]:
            raise RecipeError(f"{part}: differs from the recipe that the model was measured for; measure it anew")


def _preparation_of(recipe: Recipe) -> dict[str, object]:
    """What decides the form a float model is measured in."""
    rules = [(r.match, r.balance, r.prune) for r in recipe.rules if r.balance is not None or r.prune is not None]
    return {
        **{part: getattr(recipe, part) for part in ("target", "fuse", "equalize", "balance", "prune")},
        "rules (balance, prune)": rules,
    }


def _notes(ctx: QuantContext) -> tuple[str, ...]:
    return tuple(n for r in ctx.reports if r.name == SelectLayers.__name__ for n in r.notes)


def measure(
    model: ModelLike,
    data: DataLike | None,
    *,
    recipe: RecipeLike | None = None,
    also: Sequence[RecipeLike] = (),
    threads: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Prepare a float model and measure its activations.

    Args:
        model: The float model; it is not changed.
        data: Calibration samples, as for `onnxq.quantize`.
        recipe: What is wanted.
        also: What will be tried later: what these recipes need besides is measured in the same run, or in one more
            for each other operator set they need.
        threads: Threads of calibration, 0 for all cores. It does not change the result.
        progress: Is told how far calibration is.

    Raises:
        RecipeError: If one of `also` wants another form of the float model.
        OnnxqError: If the model, the data or the recipe cannot be used; the message says what to do.
    """
    recipe_ = recipe_of(recipe, None)
    others = [r for r in (recipe_of(r, None) for r in also) if r.scheme.kind == "static"]
    original, source = open_model(model)
    reader, notes = reader_for(original, data, recipe_)
    ctx = context_for(recipe_, reader, threads, progress)
    if recipe_.scheme.kind != "static":
        return Measured(original, ctx, (*original.notes, *notes), original, source, data)
    by_sets: dict[tuple[int, int], list[Recipe]] = {opsets(recipe_, ctx.target): [recipe_]}
    for other in others:
        _check_same_preparation(recipe_, other)
        by_sets.setdefault(opsets(other, ctx.target), []).append(other)
    forms: dict[tuple[int, int], _Form] = {}
    contexts: list[QuantContext] = []
    for sets, recipes in by_sets.items():
        forms[sets] = _prepare(
            original.copy(), replace(ctx, reports=[], moments={}, balance={}, kept={}, metadata={}), sets
        )
        contexts.append(forms[sets].measure(recipes, reader))
    graph = forms[opsets(recipe_, ctx.target)].graph
    if reader is not None:
        notes += reader.notes
    return Measured(graph, contexts[0], (*graph.notes, *notes), original, source, data, forms)


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
