"""From a recipe to passes, in the one order that is right, and from a model to a quantized model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxq._version import __version__
from onnxq.calib.distributed import Where, Workers, opened
from onnxq.calib.readers import CheckedReader, DataLike, RandomReader, as_reader
from onnxq.context import QuantContext
from onnxq.errors import DataError, ModelError, OnnxqError, PassError, RecipeError
from onnxq.graph import GraphModel
from onnxq.modelio import file_sha256, load_model
from onnxq.passes._base import Fact, Instrument, Pass, PassManager
from onnxq.passes._inputs import inputs_of
from onnxq.passes._specs import FIRST_PER_AXIS, needed_opset
from onnxq.passes._weight_only import check_weight_only, stored_opsets
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.balance_dmq import BalanceDmq
from onnxq.passes.bound_masks import BoundMasks
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.calibrate_channels import CalibrateChannels
from onnxq.passes.choose_blocks import ChooseBlocks
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.choose_weight_codes import ChooseWeightCodes
from onnxq.passes.collect_factors import CollectFactors
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_ascend import InsertAscend
from onnxq.passes.insert_ascend_fake import InsertAscendFake
from onnxq.passes.insert_dynamic import InsertDynamic
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.insert_weight_only import InsertWeightOnly
from onnxq.passes.keep_twin import KeepTwin
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.mask_weights import MaskWeights
from onnxq.passes.match_means import MatchMeans
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.passes.note_moments import NoteMoments
from onnxq.passes.remove_channels import RemoveChannels
from onnxq.passes.restore_means import RestoreMeans
from onnxq.passes.round_weights import RoundWeights
from onnxq.passes.search_ranges import SearchRanges
from onnxq.passes.search_steps import SearchSteps
from onnxq.passes.select_dynamic import SelectDynamic
from onnxq.passes.select_layers import SelectLayers
from onnxq.passes.select_weights import SelectWeights
from onnxq.passes.separate_norms import SeparateNorms
from onnxq.passes.spread_channels import SpreadChannels
from onnxq.passes.stamp import Stamp
from onnxq.passes.store_caches import StoreCaches
from onnxq.passes.sweep import Sweep
from onnxq.passes.upgrade_opset import UpgradeOpset
from onnxq.plan import Plan
from onnxq.recipe import (
    NUQ,
    AdaRound,
    BiasCorrection,
    ChannelPrune,
    Dynamic,
    Recipe,
    RefineStep,
    TensorConfig,
    TwoOfFour,
    WeightOnly,
)
from onnxq.result import Result
from onnxq.targets import Target, get_target

__all__ = ["Result", "build", "plan_model", "quantize"]

ModelLike = str | os.PathLike[str] | onnx.ModelProto | GraphModel
"""A path, a model or a graph."""
RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, object]
"""A recipe, the path of one, or its content."""
Progress = Callable[[str, int, int | None], None]
"""Is told what is being done, how much of it is done, and of how much (None: not known)."""


def build(
    recipe: Recipe, target: Target, *, plan_only: bool = False, instruments: Sequence[Instrument] = ()
) -> PassManager:
    """The passes of post-training quantization, in order.

    Args:
        recipe: What is wanted.
        target: The backend.
        plan_only: Stop when it is known what would be quantized.
        instruments: Observers of every pass.

    Raises:
        RecipeError: If the recipe asks for something that does not go together.
    """
    scheme = recipe.scheme.kind
    if scheme not in target.schemes:
        known = ", ".join(sorted(target.schemes))
        raise RecipeError(f"scheme: {target.title} has no {scheme} quantization; use {known}")
    if isinstance(recipe.scheme, WeightOnly):
        passes = weight_only(recipe, target, recipe.scheme)
        return PassManager(passes[: _planned(passes)] if plan_only else passes, tuple(instruments))
    if isinstance(recipe.scheme, Dynamic):
        passes = [*preparation(recipe, target, select=False), SelectDynamic()]
        passes += [SeparateNorms(), InsertDynamic(), Sweep(), Stamp()]
        return PassManager(passes[: _planned(passes)] if plan_only else passes, tuple(instruments))
    passes = preparation(recipe, target)
    if not plan_only:
        passes += [*measurement(recipe), *choice(recipe), *insertion(target)]
    return PassManager(passes, tuple(instruments))


def weight_only(recipe: Recipe, target: Target, scheme: WeightOnly) -> list[Pass]:
    """The passes that store weights as codes and leave activations float.

    Args:
        recipe: What is wanted.
        target: The backend.
        scheme: What is wanted of the weights.

    Raises:
        RecipeError: If the recipe asks for something that has no effect without codes of activations.
    """
    check_weight_only(recipe)
    passes = [*preparation(recipe, target, select=False), SelectWeights()]
    mixed = scheme.mixed
    if scheme.method is not None:
        passes.append(ChooseBlocks(scheme))
    if mixed is None:
        passes.append(ChooseWeightCodes(scheme.correction))
    else:
        passes.append(SearchSteps(mixed.init_scale, mixed.auto_tune, mixed.max_iterations, scheme.correction))
    if scheme.correction and not recipe.equalize.enabled:  # equalization changes what is known of activations
        passes.append(RestoreMeans())
    size = 32 if scheme.block_size == "row" else scheme.block_size
    return [*passes, InsertWeightOnly(scheme.storage, size, scheme.compute), Sweep(), Stamp()]


def _planned(passes: Sequence[Pass]) -> int:
    """How many passes it takes until there is a plan."""
    return next(i for i, step in enumerate(passes, 1) if Fact.PLAN in step.provides)


def preparation(recipe: Recipe, target: Target, *, select: bool = True) -> list[Pass]:
    """The passes that bring a float model into the form it is quantized in.

    Args:
        recipe: What is wanted.
        target: The backend.
        select: End with the plan of what is quantized.

    Raises:
        RecipeError: If the recipe asks for something that does not go together.
    """
    passes: list[Pass] = [
        UpgradeOpset(*opsets(recipe, target)),
        AssignNames(),
        LiftConstants(),
        FoldConstants(),
        InferShapes(),
    ]
    pruned = pruning(recipe)
    if ChannelPrune in pruned:
        passes.append(RemoveChannels())
    if isinstance(recipe.scheme, WeightOnly):
        passes.append(NoteMoments())
    if recipe.fuse.batchnorm:
        passes.append(FuseBatchNorm(recipe.fuse.skip_layers))
    if recipe.equalize.enabled:
        if not recipe.fuse.batchnorm:
            raise RecipeError(
                "equalize.enabled needs folded weights: set fuse.batchnorm: true, or leave equalization out"
            )
        options = recipe.equalize
        passes.append(EqualizeLayers(options.iterations, options.tolerance, options.drop_clips))
    if target.all_codes:
        passes.append(BoundMasks())
    masks: list[Pass] = [MaskWeights()] if TwoOfFour in pruned else []
    if recipe.scheme.kind == "weight_only":  # weights are decoded: every form of a Gemm will do
        return [*passes, *masks]
    return [*passes, NormalizeGemm(), *masks, *([SelectLayers()] if select else [])]


def pruning(recipe: Recipe) -> frozenset[type]:
    """The kinds of pruning that a recipe asks for anywhere."""
    configs = [recipe.prune, *(rule.prune for rule in recipe.rules)]
    return frozenset(type(c) for c in configs if c is not None)


def measurement(recipe: Recipe) -> list[Pass]:
    """The passes that run the float model over the data and even out its channels; they need a plan.

    Args:
        recipe: What is wanted.
    """
    return [*balancing(recipe), *calibration(recipe)]


def balancing(recipe: Recipe) -> list[Pass]:
    """The passes that move uneven channels into the weights, where the recipe wants that; they need a plan.

    Args:
        recipe: What is wanted.
    """
    if recipe.balance is None and all(rule.balance is None for rule in recipe.rules):
        return []
    return [CalibrateChannels(), BalanceDmq(), SelectLayers()]


def calibration(recipe: Recipe, also: Sequence[Plan] = ()) -> list[Pass]:
    """The passes that run the model over the data; they need a plan.

    Args:
        recipe: What is wanted.
        also: Plans of other recipes, whose activations are measured in the same run.
    """
    passes: list[Pass] = [Calibrate(channels=recipe.equalize.depthwise, also=tuple(also))]
    if recipe.equalize.depthwise:
        passes.append(SpreadChannels())
    return passes


def choice(recipe: Recipe) -> list[Pass]:
    """The passes that turn what was measured into numbers, and weights and biases into better ones.

    Args:
        recipe: What is wanted.

    Raises:
        RecipeError: If the recipe asks for something that does not go together.
    """
    configs = [recipe.weights, *(rule.weights for rule in recipe.rules)]
    rounding = any(c is not None and isinstance(c.method, (AdaRound, NUQ)) for c in configs)
    rounded: list[Pass] = [RoundWeights()] if rounding else []
    return [SearchRanges(), ChooseParams(), *rounded, *map(_refinement, recipe.refine)]


def insertion(target: Target) -> list[Pass]:
    """The passes that write the numbers into the graph.

    Args:
        target: The backend.
    """
    if target.insertion == "qdq":
        return [InsertQdq(), StoreCaches(), Sweep(), Stamp()]
    return [CollectFactors(), KeepTwin(), *deployment().passes]


def deployment() -> PassManager:
    """The passes that write the numbers of layers into a graph for Ascend."""
    return PassManager([InsertAscend(), Sweep(), Stamp()], initial=frozenset({Fact.FACTORS}))


def twin() -> PassManager:
    """The passes that make of the same graph what runs here in its place."""
    return PassManager([InsertAscendFake(), Sweep(), Stamp()], initial=frozenset({Fact.FACTORS}))


def _refinement(step: RefineStep) -> Pass:
    if isinstance(step, BiasCorrection):
        return MatchMeans(step.samples) if step.inputs == "float" else CorrectBias(step.samples or 32)
    return RoundWeights(step)


def opsets(recipe: Recipe, target: Target) -> tuple[int, int]:
    """The operator set wanted, and the oldest one that will do."""
    if isinstance(recipe.scheme, WeightOnly):
        return stored_opsets(recipe, recipe.scheme, target)
    configs: list[TensorConfig] = [recipe.activations, recipe.weights]
    configs += [c for rule in recipe.rules for c in (rule.activations, rule.weights) if c is not None]
    needed = needed_opset(configs, target)
    oldest = 11 if recipe.scheme.kind == "dynamic" else 10  # where DynamicQuantizeLinear and QuantizeLinear came
    return needed, needed if needed > FIRST_PER_AXIS else oldest


def quantize(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    recipe: RecipeLike | None = None,
    target: str | None = None,
    threads: int = 0,
    workers: Workers | Where | None = None,
    instruments: Sequence[Instrument] = (),
    progress: Progress | None = None,
) -> Result:
    """Quantize a model after training.

    Args:
        model: The float model; it is not changed.
        data: Calibration samples: a path (an .npz, a folder of .npz, .npy, .bin or image files), arrays by
            input name, an iterable of feeds, or onnxruntime's CalibrationDataReader. See `onnxq.calib.readers`.
        recipe: What is wanted; by default the best known recipe.
        target: Backend, if not the recipe's.
        threads: Threads of calibration, 0 for all cores. It does not change the result.
        workers: Calibrate on so many processes, each with `threads`, or on those of a scheduler of dask.distributed:
            its address, or `onnxq.calib.distributed.Workers` that are open. It does not change the result either.
        instruments: Observers of every pass.
        progress: Is told how far calibration is.

    Raises:
        OnnxqError: If the model, the data or the recipe cannot be used; the message says what to do.
    """
    recipe_ = recipe_of(recipe, target)
    graph, source = open_model(model)
    original = graph.copy()
    reader, notes = reader_for(graph, data, recipe_)
    ctx = context_for(recipe_, reader, threads, progress)
    manager = build(recipe_, ctx.target, instruments=instruments)
    with opened(workers, threads=threads) as ctx.workers:
        return carry_out(manager, graph, ctx, original=original, source=source, notes=notes)


def carry_out(
    manager: PassManager,
    graph: GraphModel,
    ctx: QuantContext,
    *,
    original: GraphModel,
    source: Path | None,
    notes: tuple[str, ...] = (),
) -> Result:
    """Run all passes of a quantization and say what it gave.

    Args:
        manager: The passes; the last ones write the numbers into the graph.
        graph: The float model, or what the passes begin with; it becomes the quantized one.
        ctx: The context of the run.
        original: The float model as it came.
        source: The file it came from.
        notes: What a user should know besides.

    Raises:
        OnnxqError: If the model, the data or the recipe cannot be used.
    """
    reader = ctx.reader if isinstance(ctx.reader, CheckedReader) else None
    prepared = KeepPrepared()
    observers = (*manager.instruments, _Digest(original, source, reader), prepared)
    try:
        run_passes(PassManager(manager.passes, observers, manager.initial), graph, ctx)
    except DataError:
        if reader is None:
            inputs_of(graph)  # says so where no data can be given
        raise
    if reader is not None:
        notes += reader.notes
    if ctx.twin is not None:
        run_passes(twin(), ctx.twin, ctx)
    return result_of(graph, ctx, (*graph.notes, *notes), source, original, prepared.graph)


def plan_model(model: ModelLike, *, recipe: RecipeLike | None = None, target: str | None = None) -> Result:
    """Find out what would be quantized, and why the rest would not; needs no data.

    Args:
        model: The float model; it is not changed.
        recipe: What is wanted; by default the best known recipe.
        target: Backend, if not the recipe's.

    Raises:
        OnnxqError: If the model or the recipe cannot be used.
    """
    recipe_ = recipe_of(recipe, target)
    graph, source = open_model(model)
    original = graph.copy()
    ctx = context_for(recipe_, None, 1, None)
    run_passes(build(recipe_, ctx.target, plan_only=True), graph, ctx)
    return result_of(graph, ctx, tuple(graph.notes), source, original)


def result_of(
    graph: GraphModel,
    ctx: QuantContext,
    notes: tuple[str, ...],
    source: Path | None,
    original: GraphModel,
    prepared: GraphModel | None = None,
) -> Result:
    """What a run has given, with the notes that a user should see."""
    # the notes of all others are statistics
    telling = (UpgradeOpset, SelectLayers, SelectDynamic, SearchSteps, ChooseBlocks, InsertWeightOnly)
    notes += tuple(n for r in ctx.reports if r.name in {t.__name__ for t in telling} for n in r.notes)
    plan = Plan() if ctx.plan is None else ctx.plan
    if not plan:
        notes += ("nothing in this model can be quantized: it is passed through unchanged",)
    notes = tuple(dict.fromkeys(notes))
    return Result(
        graph, plan, dict(ctx.params), tuple(ctx.reports), ctx.recipe, ctx.samples, notes, source, original,
        ctx.twin, dict(ctx.factors), prepared, dict(ctx.weight_codes), dict(ctx.steps),
    )  # fmt: skip


class KeepPrepared(Instrument):
    """Keeps the float model as it is before the first pass that writes numbers into it."""

    def __init__(self) -> None:
        self.graph: GraphModel | None = None

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Copy the graph; its weights are shared."""
        if self.graph is None and step.provides & {Fact.PARAMS, Fact.FACTORS, Fact.CODES, Fact.QUANTIZED}:
            self.graph = graph.copy()


class _Digest(Instrument):
    """Fills in what Stamp writes: it is known only when the data have been read."""

    def __init__(self, original: GraphModel, source: Path | None, reader: CheckedReader | None) -> None:
        self._original = original
        self._source = source
        self._reader = reader

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Write the entries in front of Stamp."""
        if not isinstance(step, Stamp):
            return
        if self._source is not None:
            digest = file_sha256(self._source)
        else:
            digest = hashlib.sha256(self._original.skeleton(keep=1 << 20).SerializeToString()).hexdigest()
        ctx.metadata |= {
            "onnxq.version": __version__,
            "onnxq.target": ctx.target.name,
            "onnxq.recipe_sha256": ctx.recipe.digest(),
            "onnxq.model_sha256": digest,
        }
        if self._reader is not None and ctx.samples:
            ctx.metadata["onnxq.calibration_sha256"] = self._reader.digest()
            ctx.metadata["onnxq.calibration_samples"] = str(ctx.samples)
            if ctx.recipe.calibration.random:
                ctx.metadata["onnxq.calibration_data"] = "random"


def recipe_of(recipe: RecipeLike | None, target: str | None) -> Recipe:
    """The recipe that was meant."""
    if recipe is None:
        chosen = Recipe()
    elif isinstance(recipe, Recipe):
        chosen = recipe
    elif isinstance(recipe, Mapping):
        chosen = Recipe.from_dict(recipe)
    else:
        chosen = Recipe.from_file(Path(recipe))
    if target is not None:
        chosen = chosen.replace(target=get_target(target).name)
    return chosen


def context_for(recipe: Recipe, reader: CheckedReader | None, threads: int, progress: Progress | None) -> QuantContext:
    """A fresh context."""
    target = get_target(recipe.target)
    return QuantContext(recipe, target, reader, threads=threads, seed=recipe.calibration.seed, progress=progress)


def open_model(model: ModelLike) -> tuple[GraphModel, Path | None]:
    """A graph of its own, and the file it came from."""
    if isinstance(model, GraphModel):
        return model.copy(), None
    if isinstance(model, onnx.ModelProto):
        return GraphModel.from_proto(model), None
    path = Path(model)
    return load_model(path), path


def reader_for(
    graph: GraphModel, data: DataLike | None, recipe: Recipe
) -> tuple[CheckedReader | None, tuple[str, ...]]:
    """The data as a reader, None where there are none, and what a user should know about them."""
    options = recipe.calibration
    if data is None and not options.random:
        return None, ()
    try:
        inputs = inputs_of(graph)
    except ModelError:  # it matters only if something can be quantized
        return None, ()
    if data is not None:
        if options.random:
            raise RecipeError("calibration.random is true and data are given as well; decide for one")
        layout = options.bin_layout
        alone = isinstance(recipe.scheme, WeightOnly) and recipe.scheme.method is None
        samples = 1 if alone else options.samples  # auto_tune takes a single one
        return as_reader(data, inputs, preprocess=options.preprocess, layout=layout, samples=samples), ()
    random = RandomReader(inputs, options.random_samples, seed=options.seed)
    note = "calibrated with random data: scales mean nothing for real inputs, use the model for trying things out only"
    return as_reader(random, inputs), (note,)


def run_passes(manager: PassManager, graph: GraphModel, ctx: QuantContext) -> None:
    """Run the passes; an error about the user's input comes out as itself, without the name of a pass."""
    try:
        manager.run_each(graph, ctx)
    except PassError as err:
        if isinstance(err.__cause__, OnnxqError):
            raise err.__cause__ from None
        raise
