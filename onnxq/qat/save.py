"""From trained artifacts back to a quantized model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq._version import __version__
from onnxq.algos.affine import fp16_scale
from onnxq.context import QuantContext
from onnxq.errors import TrainingError
from onnxq.graph import GraphModel
from onnxq.modelio import load_model
from onnxq.passes._base import Fact, Pass, PassManager
from onnxq.passes._weights import weight_value
from onnxq.passes.fit_scales import FitScales
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.select_layers import SelectLayers
from onnxq.pipeline import context_for, insertion, result_of, run_passes, twin
from onnxq.plan import Plan
from onnxq.qat._batchnorm import folded_params
from onnxq.qat.manifest import FLOAT_MODEL, Manifest
from onnxq.qat.overlay import Overlay
from onnxq.qat.trainer import BEST, LAST
from onnxq.qat.worker_client import Worker
from onnxq.result import Result
from onnxq.spec import QuantParams

_PREPARED = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})


def newest_checkpoint(directory: Path, preferred: Path | None = None) -> Path | None:
    """The checkpoint that counts: the preferred one, else the best one, else the last one; None for the artifacts' own.

    Args:
        directory: The artifacts.
        preferred: Taken where it exists.
    """
    known = (preferred, directory / BEST, directory / LAST)
    return next((path for path in known if path is not None and path.is_file()), None)


def open_worker(directory: Path, checkpoint: Path | None, overlay: Overlay | None = None) -> Worker:
    """A worker with artifacts open; whoever gets it closes it.

    Raises:
        TrainingError: If a file is missing, or the training runtime is.
    """
    worker = Worker(overlay)
    try:
        worker.open(directory, checkpoint)
    except TrainingError:
        worker.close()
        raise
    return worker


def trained_values(
    directory: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    overlay: Overlay | None = None,
) -> dict[str, NDArray[Any]]:
    """The parameters of a checkpoint by name.

    Args:
        directory: The artifacts.
        checkpoint: By default the best one, else the last one, else that of the artifacts, which is untrained.
        overlay: The training runtime.

    Raises:
        TrainingError: If a file is missing, or the training runtime is.
    """
    folder = Path(directory)
    found = newest_checkpoint(folder) if checkpoint is None else Path(checkpoint)
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise TrainingError(f"there is no checkpoint {checkpoint}")
    with Worker(overlay) as worker:
        worker.open(folder, found)
        return worker.parameters()


def quantized(directory: str | os.PathLike[str], values: Mapping[str, NDArray[Any]]) -> Result:
    """The quantized model that trained parameters make; the float model, where it was trained without quantizers.

    Trained weights take the place of the old ones; ranges and scales become scales and zero points as
    `onnxq.learned` says; then the passes that end every quantization insert them.

    Args:
        directory: The artifacts.
        values: The trained parameters; see `trained_values`.

    Raises:
        TrainingError: If the parameters do not belong to the artifacts.
    """
    folder = Path(directory)
    manifest = Manifest.read(folder)
    missing = [name for name in (*manifest.trained, *manifest.frozen) if name not in values]
    if missing:
        raise TrainingError(f"the parameters lack {missing[0]!r}, which {folder} has; they are of other artifacts")
    graph = load_model(folder / FLOAT_MODEL)
    _take_weights(graph, manifest, values)
    original = graph.copy()
    if not (manifest.ranges or manifest.scales):
        note = "the model was trained without quantizers: it is a float model"
        return Result(graph, Plan(), {}, (), manifest.recipe, 0, (note,), None, original)
    ctx = context_for(manifest.recipe, None, 1, None)
    unfolded = graph.copy()
    folding: list[Pass] = []
    if manifest.recipe.training.batchnorm == "train" and manifest.recipe.fuse.batchnorm:
        folding = [FuseBatchNorm(manifest.recipe.fuse.skip_layers)]
    run_passes(PassManager([*folding, SelectLayers()], initial=_PREPARED), graph, ctx)
    ctx.params = _params(unfolded, manifest, values)
    _fold_params(ctx, graph, unfolded, manifest)
    ctx.metadata |= {
        "onnxq.version": __version__,
        "onnxq.target": ctx.target.name,
        "onnxq.recipe_sha256": manifest.recipe.digest(),
        "onnxq.model_sha256": manifest.model_sha256,
        "onnxq.trained": "true",
    }
    _check(ctx, folder)
    steps: list[Pass] = [FitScales(), *insertion(ctx.target)]
    run_passes(PassManager(steps, initial=_PREPARED | {Fact.PLAN, Fact.PARAMS}), graph, ctx)
    if ctx.twin is not None:
        run_passes(twin(), ctx.twin, ctx)
    notes = tuple(n for r in ctx.reports if r.name == FitScales.__name__ for n in r.notes)
    return result_of(graph, ctx, notes, folder / FLOAT_MODEL, original)


def _take_weights(graph: GraphModel, manifest: Manifest, values: Mapping[str, NDArray[Any]]) -> None:
    masks = {m.weight: m.mask for m in manifest.masks}
    for tensor in graph.constants():
        name = str(tensor.name)
        if name not in manifest.trained and name not in manifest.frozen:
            continue
        value = np.asarray(values[name], np.float32)
        if name in masks:
            value = value * values[masks[name]]
        graph.rewrite_constant(tensor, value)


def _params(graph: GraphModel, manifest: Manifest, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    params: dict[str, Any] = dict(manifest.fixed)
    for learned in manifest.ranges:
        found = learned.grid(values).params(learned.spec)
        if manifest.recipe.fp16_scales:
            found = QuantParams(found.spec, fp16_scale(found.scale), found.zero_point)
        params |= dict.fromkeys(learned.keys, found)
    for scale in manifest.scales:
        scales = scale.params(np.asarray(graph.value(graph.tensor(scale.weight)), np.float32), values)
        if scales is not None:
            params[scale.key] = scales
    return params


def _fold_params(ctx: QuantContext, graph: GraphModel, unfolded: GraphModel, manifest: Manifest) -> None:
    """Let scales follow weights that folding has changed."""
    learned = {scale.key: scale.weight for scale in manifest.scales}
    for plan in () if ctx.plan is None else ctx.plan.weights:
        if plan.key not in learned or plan.key not in ctx.params:
            continue
        before = np.asarray(unfolded.value(unfolded.tensor(learned[plan.key])), np.float32)
        ctx.params[plan.key] = folded_params(ctx.params[plan.key], before, weight_value(graph, plan), plan, graph)


def _check(ctx: QuantContext, folder: Path) -> None:
    plan = ctx.plan
    keys = () if plan is None else (*plan.activations, *(w.key for w in plan.weights))
    for key in keys:
        if key not in ctx.params:
            raise TrainingError(
                f"{folder}: nothing was learned of {key!r}, which this onnxq would quantize; the artifacts were "
                "made with another version: make them anew"
            )
