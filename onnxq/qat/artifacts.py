"""From a float model to artifacts that any client of the training runtime can train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxq._version import __version__
from onnxq.calib.readers import DataLike
from onnxq.context import QuantContext
from onnxq.errors import DataError, TrainingError
from onnxq.graph import GraphModel
from onnxq.modelio import file_sha256, save_model
from onnxq.passes._base import Fact, PassManager
from onnxq.passes._inputs import inputs_of
from onnxq.passes._legal_opset import lower_opset
from onnxq.passes._legal_paths import reached
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_fake_quant import InsertFakeQuant
from onnxq.passes.insert_masks import InsertMasks
from onnxq.passes.legalize_for_training import LegalizeForTraining
from onnxq.passes.lift_constants import LiftConstants
from onnxq.pipeline import (
    ModelLike,
    Progress,
    RecipeLike,
    choice,
    context_for,
    measurement,
    open_model,
    preparation,
    reader_for,
    recipe_of,
    run_passes,
)
from onnxq.plan import Plan
from onnxq.qat._batchnorm import plain, unfolded_plan
from onnxq.qat._trainable import trainable
from onnxq.qat.losses import LOSS, LossInput, add_loss
from onnxq.qat.manifest import FLOAT_MODEL, TEACHER_MODEL, Manifest, Mask
from onnxq.qat.overlay import Overlay
from onnxq.qat.worker_client import ArtifactRequest, Worker
from onnxq.recipe import Loss, LossModel, Recipe

_NEWEST_OPSET, _NEWEST_IR = 21, 10
"""The newest versions that the training runtime reads."""


@dataclass(frozen=True)
class Artifacts:
    """What `create` has written.

    Attributes:
        directory: The folder.
        manifest: What the parameters mean.
        files: The models, the checkpoint and the manifest.
        plan: What is quantized, and why the rest is not.
        notes: What a user should know, a sentence each.
    """

    directory: Path
    manifest: Manifest
    files: tuple[Path, ...]
    plan: Plan
    notes: tuple[str, ...] = ()


def create(
    model: ModelLike,
    data: DataLike | None,
    directory: str | os.PathLike[str],
    *,
    recipe: RecipeLike | None = None,
    target: str | None = None,
    quantize: bool = True,
    threads: int = 0,
    overlay: Overlay | None = None,
    progress: Progress | None = None,
) -> Artifacts:
    """Make the artifacts of quantization-aware training.

    Calibration gives the scales that training begins with. The folder gets ``training_model.onnx``,
    ``eval_model.onnx``, ``optimizer_model.onnx`` and ``checkpoint`` as onnxruntime-training defines them,
    ``float_model.onnx``, the float model in the form it is quantized in, and ``manifest.json``. Pruning comes first:
    the float model has lost its channels, and weights with two zeros in every four keep them by masks. Where a pruned
    model learns from the float one, that is kept as ``teacher_model.onnx``.

    Args:
        model: The float model; it is not changed.
        data: Calibration samples; see `onnxq.quantize`.
        directory: The folder; it is made.
        recipe: What is wanted: `Recipe.training`, and ``trained`` of activations and weights.
        target: Backend, if not the recipe's.
        quantize: Train with quantizers. Without, the float model is trained; no data are needed then.
        threads: Threads of calibration, 0 for all cores.
        overlay: The training runtime; found in the cache by default.
        progress: Is told how far calibration is.

    Raises:
        OnnxqError: If the model, the data or the recipe cannot be used, or there is no training runtime.
    """
    recipe_ = recipe_of(recipe, target)
    graph, source = open_model(model)
    sha256 = "" if source is None else file_sha256(source)
    teacher = graph.copy()
    if quantize:
        floats, ctx, notes = _calibrated(graph, data, recipe_, threads, progress)
        if recipe_.training.batchnorm == "train":
            floats = _unfolded(teacher.copy(), floats, ctx)
        learning = floats.copy()
        PassManager([InsertFakeQuant()], initial=frozenset({Fact.PLAN, Fact.PARAMS})).run_each(learning, ctx)
    else:
        floats, ctx, notes = _prepared(graph, recipe_)
        learning = floats.copy()
    ctx.masked = tuple(replace(m, weight=str(floats.node(m.node).inputs[1].name)) for m in ctx.masked)
    run_passes(PassManager([InsertMasks()], initial=frozenset({Fact.LEARNING, Fact.MASKED})), learning, ctx)
    parameters = _existing(trainable(floats, recipe_.training.freeze), learning)
    learned = [name for r in ctx.ranges_learned for name in r.parameters]
    learned += [s.parameter for s in ctx.scales_learned if s.parameter]
    names = tuple(str(tensor.name) for tensor in learning.outputs)
    proto, loss_inputs, trained = _with_loss(learning, (*parameters, *learned), ctx)
    wanted = recipe_.training.output or names[0]
    idle = tuple(name for name in learned if name not in trained)
    manifest = Manifest(
        recipe_,
        {i.name: i.dtype.name for i in inputs_of(floats)},
        (wanted, *(name for name in names if name != wanted)),
        loss_inputs,
        _classes(proto, wanted, loss_inputs, recipe_.training.loss),
        trained,
        frozen=(*ctx.frozen, *idle, *(m.mask for m in ctx.masked)),
        ranges=ctx.ranges_learned,
        scales=ctx.scales_learned,
        fixed={s.key: ctx.params[s.key] for s in ctx.scales_learned if s.method == "fixed"},
        masks=tuple(Mask(m.weight, m.mask, m.axis, m.update_freq) for m in ctx.masked if m.weight in trained),
        kept={name: tuple(channels.tolist()) for name, channels in ctx.kept.items()},
        model_sha256=sha256,
        version=__version__,
    )
    pruned = bool(ctx.kept or ctx.masked) and any(i.teacher for i in loss_inputs)
    files = _write(Path(directory), proto, (floats, teacher if pruned else None), manifest, overlay)
    return Artifacts(Path(directory), manifest, files, ctx.plan or Plan(), notes)


def _prepared(graph: GraphModel, recipe: Recipe) -> tuple[GraphModel, QuantContext, tuple[str, ...]]:
    """The float model in the form it would be quantized in."""
    ctx = context_for(recipe, None, 1, None)
    run_passes(PassManager(preparation(_without_folding(recipe), ctx.target, select=False)), graph, ctx)
    graph.sweep()
    return graph, ctx, tuple(graph.notes)


def _unfolded(graph: GraphModel, folded: GraphModel, ctx: QuantContext) -> GraphModel:
    """The float model with its BatchNormalization; the context's plan and numbers are made to fit it."""
    graph, other, _ = _prepared(graph, ctx.recipe)
    ctx.plan, ctx.params = unfolded_plan(ctx.plan or Plan(), folded, graph, ctx.params)
    ctx.kept, ctx.masked = other.kept, other.masked
    return graph


def _calibrated(
    graph: GraphModel, data: DataLike | None, recipe: Recipe, threads: int, progress: Progress | None
) -> tuple[GraphModel, QuantContext, tuple[str, ...]]:
    """The float model in the form it is quantized in, and its numbers."""
    if recipe.scheme.kind != "static":
        raise TrainingError(f"scheme: {recipe.scheme.kind} quantization is not trained; use static")
    reader, notes = reader_for(graph, data, recipe)
    if reader is None:
        raise DataError("training begins with calibration: give data, or ask for random data to try things out")
    ctx = context_for(recipe, reader, threads, progress)
    wanted = plain(recipe) if recipe.training.batchnorm == "train" else recipe
    steps = [*preparation(wanted, ctx.target), *measurement(wanted), *choice(wanted)]
    run_passes(PassManager(steps), graph, ctx)
    graph.sweep()
    if not ctx.plan:
        raise TrainingError("nothing in this model can be quantized, so there is nothing to train; see 'onnxq inspect'")
    return graph, ctx, (*graph.notes, *notes, *reader.notes)


def _without_folding(recipe: Recipe) -> Recipe:
    """The recipe, keeping BatchNormalization where it is to be trained."""
    if recipe.training.batchnorm == "fold":
        return recipe
    return recipe.replace(fuse=recipe.fuse.model_copy(update={"batchnorm": False}))


def _with_loss(
    graph: GraphModel, names: tuple[str, ...], ctx: QuantContext
) -> tuple[onnx.ModelProto, tuple[LossInput, ...], tuple[str, ...]]:
    """The network and the loss in what can be derived; what the loss reads; the parameters it depends on."""
    training = ctx.recipe.training
    given = isinstance(training.loss, LossModel)
    outputs = () if given else (training.output or str(graph.outputs[0].name),)
    run_passes(PassManager([LegalizeForTraining(names, outputs)], initial=frozenset({Fact.SHAPES})), graph, ctx)
    proto = _readable(graph)
    inputs = add_loss(proto, training)
    if not given:
        return proto, inputs, reached(graph, names, outputs)
    graph = GraphModel.from_proto(proto)
    steps = [AssignNames(), LiftConstants(), InferShapes(), LegalizeForTraining(names, (LOSS,))]
    run_passes(PassManager(steps), graph, ctx)
    return _readable(graph), inputs, reached(graph, names, (LOSS,))


def _existing(names: Sequence[str], graph: GraphModel) -> tuple[str, ...]:
    constants = {t.name for t in graph.constants()}
    return tuple(name for name in names if name in constants)


def _readable(graph: GraphModel) -> onnx.ModelProto:
    """The model in a version that the training runtime reads."""
    proto = onnx.shape_inference.infer_shapes(graph.to_proto())
    against = lower_opset(proto, _NEWEST_OPSET)
    if against:
        raise TrainingError(
            f"the model has opset {graph.opset}, the newest one the training runtime reads is {_NEWEST_OPSET}, and "
            f"{', '.join(against[:3])} {'is' if len(against) == 1 else 'are'} different there; export the model with "
            "that one"
        )
    proto.ir_version = min(proto.ir_version, _NEWEST_IR)
    return proto


def _classes(proto: onnx.ModelProto, wanted: str, inputs: Sequence[LossInput], loss: Loss) -> int:
    """How many classes there are, where labels are indexes: the runtime does not check them.

    What a loss of the user's takes whole numbers for is not known.
    """
    if isinstance(loss, LossModel) or not any(i.dtype == "int64" for i in inputs):
        return 0
    value = next(v for v in proto.graph.output if v.name == wanted)
    dims = value.type.tensor_type.shape.dim
    return int(dims[1].dim_value) if len(dims) > 1 else 0


def _write(
    directory: Path,
    proto: onnx.ModelProto,
    floats: tuple[GraphModel, GraphModel | None],
    manifest: Manifest,
    overlay: Overlay | None,
) -> tuple[Path, ...]:
    """Write everything; `floats` are the model that training begins with, and its teacher where that is another one."""
    training = manifest.recipe.training
    request = ArtifactRequest(
        manifest.trained,
        frozen=manifest.frozen,
        outputs=manifest.outputs,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        clip_grad_norm=training.clip_grad_norm,
    )
    directory.mkdir(parents=True, exist_ok=True)
    with Worker(overlay) as worker:
        files = worker.generate(proto.SerializeToString(), request, directory)
    (directory / TEACHER_MODEL).unlink(missing_ok=True)
    written = list(save_model(floats[0], directory / FLOAT_MODEL))
    if floats[1] is not None:
        written += save_model(floats[1], directory / TEACHER_MODEL)
    return (*files, *written, manifest.write(directory))
