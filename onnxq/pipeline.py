"""From a recipe to passes, in the one order that is right, and from a model to a quantized model."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxq._version import __version__
from onnxq.calib.readers import CheckedReader, DataLike, RandomReader, as_reader
from onnxq.context import QuantContext
from onnxq.errors import DataError, ModelError, OnnxqError, PassError, RecipeError
from onnxq.graph import GraphModel
from onnxq.modelio import file_sha256, load_model, save_model
from onnxq.passes._base import Instrument, Pass, PassManager, PassReport
from onnxq.passes._inputs import inputs_of
from onnxq.passes._specs import FIRST_PER_AXIS, needed_opset
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.passes.search_ranges import SearchRanges
from onnxq.passes.select_layers import SelectLayers
from onnxq.passes.spread_channels import SpreadChannels
from onnxq.passes.stamp import Stamp
from onnxq.passes.sweep import Sweep
from onnxq.passes.upgrade_opset import UpgradeOpset
from onnxq.plan import Plan
from onnxq.recipe import BiasCorrection, Recipe, RefineStep, TensorConfig
from onnxq.targets import Target, get_target

if TYPE_CHECKING:
    from onnxq.spec import QuantParams

ModelLike = str | os.PathLike[str] | onnx.ModelProto | GraphModel
"""A path, a model or a graph."""
RecipeLike = Recipe | str | os.PathLike[str] | Mapping[str, object]
"""A recipe, the path of one, or its content."""
Progress = Callable[[str, int, int | None], None]
"""Is told what is being done, how much of it is done, and of how much (None: not known)."""


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

        Args:
            path: The file to write; its folder must exist.
            external_data: As for `onnxq.save_model`.

        Raises:
            ModelError: If it cannot be written.
        """
        path = Path(path)
        if self.changed or self.original is None:
            save_model(self.graph, path, external_data=external_data)
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
    if recipe.balance is not None:
        raise RecipeError("balance: not available in this version; leave it out")
    passes: list[Pass] = [
        UpgradeOpset(*_opsets(recipe, target)),
        AssignNames(),
        LiftConstants(),
        FoldConstants(),
        InferShapes(),
    ]
    if recipe.fuse.batchnorm:
        passes.append(FuseBatchNorm(recipe.fuse.skip_layers))
    if recipe.equalize.enabled:
        if not recipe.fuse.batchnorm:
            raise RecipeError(
                "equalize.enabled needs folded weights: set fuse.batchnorm: true, or leave equalization out"
            )
        options = recipe.equalize
        passes.append(EqualizeLayers(options.iterations, options.tolerance, options.drop_clips))
    passes += [NormalizeGemm(), SelectLayers()]
    if not plan_only:
        spread = recipe.equalize.depthwise
        passes.append(Calibrate(channels=spread))
        if spread:
            passes.append(SpreadChannels())
        passes += [SearchRanges(), ChooseParams(), *map(_refinement, recipe.refine), InsertQdq(), Sweep(), Stamp()]
    return PassManager(passes, tuple(instruments))


def _refinement(step: RefineStep) -> Pass:
    if isinstance(step, BiasCorrection):
        return CorrectBias(step.samples)
    raise RecipeError(f"refine: {step.kind} is not available in this version; use bias_correction")


def _opsets(recipe: Recipe, target: Target) -> tuple[int, int]:
    """The operator set wanted, and the oldest one that will do."""
    configs: list[TensorConfig] = [recipe.activations, recipe.weights]
    configs += [c for rule in recipe.rules for c in (rule.activations, rule.weights) if c is not None]
    needed = needed_opset(configs, target)
    return needed, needed if needed > FIRST_PER_AXIS else 10


def quantize(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    recipe: RecipeLike | None = None,
    target: str | None = None,
    threads: int = 0,
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
        instruments: Observers of every pass.
        progress: Is told how far calibration is.

    Raises:
        OnnxqError: If the model, the data or the recipe cannot be used; the message says what to do.
    """
    recipe_ = _recipe(recipe, target)
    graph, source = _open(model)
    original = graph.copy()
    reader, notes = _reader(graph, data, recipe_)
    ctx = _context(recipe_, reader, threads, progress)
    try:
        _run(build(recipe_, ctx.target, instruments=(*instruments, _Digest(original, source, reader))), graph, ctx)
    except DataError:
        if reader is None:
            inputs_of(graph)  # says so where no data can be given
        raise
    if reader is not None:
        notes += reader.notes
    return _result(graph, ctx, (*graph.notes, *notes), source, original)


def plan_model(model: ModelLike, *, recipe: RecipeLike | None = None, target: str | None = None) -> Result:
    """Find out what would be quantized, and why the rest would not; needs no data.

    Args:
        model: The float model; it is not changed.
        recipe: What is wanted; by default the best known recipe.
        target: Backend, if not the recipe's.

    Raises:
        OnnxqError: If the model or the recipe cannot be used.
    """
    recipe_ = _recipe(recipe, target)
    graph, source = _open(model)
    original = graph.copy()
    ctx = _context(recipe_, None, 1, None)
    _run(build(recipe_, ctx.target, plan_only=True), graph, ctx)
    return _result(graph, ctx, tuple(graph.notes), source, original)


def _result(
    graph: GraphModel, ctx: QuantContext, notes: tuple[str, ...], source: Path | None, original: GraphModel
) -> Result:
    telling = (UpgradeOpset.__name__, SelectLayers.__name__)  # the others' notes are statistics
    notes += tuple(n for r in ctx.reports if r.name in telling for n in r.notes)
    plan = Plan() if ctx.plan is None else ctx.plan
    if not plan:
        notes += ("nothing in this model can be quantized: it is passed through unchanged",)
    notes = tuple(dict.fromkeys(notes))
    return Result(graph, plan, dict(ctx.params), tuple(ctx.reports), ctx.recipe, ctx.samples, notes, source, original)


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


def _recipe(recipe: RecipeLike | None, target: str | None) -> Recipe:
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


def _context(recipe: Recipe, reader: CheckedReader | None, threads: int, progress: Progress | None) -> QuantContext:
    target = get_target(recipe.target)
    return QuantContext(recipe, target, reader, threads=threads, seed=recipe.calibration.seed, progress=progress)


def _open(model: ModelLike) -> tuple[GraphModel, Path | None]:
    if isinstance(model, GraphModel):
        return model.copy(), None
    if isinstance(model, onnx.ModelProto):
        return GraphModel.from_proto(model), None
    path = Path(model)
    return load_model(path), path


def _reader(graph: GraphModel, data: DataLike | None, recipe: Recipe) -> tuple[CheckedReader | None, tuple[str, ...]]:
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
        return as_reader(data, inputs, preprocess=options.preprocess, samples=options.samples), ()
    random = RandomReader(inputs, options.random_samples, seed=options.seed)
    note = "calibrated with random data: scales mean nothing for real inputs, use the model for trying things out only"
    return as_reader(random, inputs), (note,)


def _run(manager: PassManager, graph: GraphModel, ctx: QuantContext) -> None:
    """Run the passes; an error about the user's input comes out as itself, without the name of a pass."""
    try:
        manager.run_each(graph, ctx)
    except PassError as err:
        if isinstance(err.__cause__, OnnxqError):
            raise err.__cause__ from None
        raise


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
