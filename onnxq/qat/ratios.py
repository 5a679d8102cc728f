"""Ratios of channel pruning, layer by layer, that a target of operations or of latency is met with.

Removing a channel changes the loss, to first order, by at most the sum of ``|weight * gradient|`` of its weights.
Channels that cost much and change little go first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxq.algos.prune import taylor_norms
from onnxq.costs import ModelCost, model_cost
from onnxq.errors import DataError, RecipeError, TrainingError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, PassManager
from onnxq.passes._channel_groups import find_channels
from onnxq.passes._inputs import inputs_of
from onnxq.passes._linear import label
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.legalize_for_training import LegalizeForTraining
from onnxq.passes.lift_constants import LiftConstants
from onnxq.pipeline import (
    ModelLike,
    Progress,
    RecipeLike,
    context_for,
    open_model,
    preparation,
    recipe_of,
    run_passes,
)
from onnxq.pruning import prune
from onnxq.qat._ratio_search import Search
from onnxq.qat._trainable import trainable
from onnxq.qat.losses import LABELS, LOSS, add_loss
from onnxq.qat.overlay import Overlay
from onnxq.qat.worker_client import Worker
from onnxq.recipe import ChannelPrune, Recipe, TrainingConfig
from onnxq.report.latency import measure
from onnxq.runtime import make_session

Array = NDArray[Any]
_BATCH, _SAMPLES = 32, 256
_TRIALS = 6
_PROJECTION = "projection"


@dataclass(frozen=True)
class Ratios:
    """What `find_ratios` has found.

    Attributes:
        recipe: The recipe with a rule for each layer that loses channels.
        flops: Part of the operations that is left.
        latency: Part of the latency that is left, where that was the target.
        notes: What a user should know, a sentence each.
    """

    recipe: Recipe = field(repr=False)
    flops: float
    latency: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {"flops": self.flops, "latency": self.latency}


def find_ratios(
    model: ModelLike,
    data: str | os.PathLike[str] | Mapping[str, Any],
    *,
    recipe: RecipeLike | None = None,
    flops: float | None = None,
    latency: float | None = None,
    multiple: int = 1,
    most: float = 0.75,
    threads: int = 0,
    overlay: Overlay | None = None,
    progress: Progress | None = None,
) -> Ratios:
    """Find how much of each layer to prune.

    Args:
        model: The float model; it is not changed.
        data: An .npz file or arrays by name: the inputs, and ``labels`` where there are any. Labels are class indexes.
            Without them, sensitivity is that of the outputs, in random directions.
        recipe: Its rules with ``prune: none`` are kept to; other ratios in it have no effect.
        flops: Part of the operations that is to be left.
        latency: Part of the time of one sample on this machine that is to be left.
        multiple: What is left of a layer is a multiple of this.
        most: The largest ratio of a layer: first-order sensitivities say little where hardly anything is left.
        threads: Threads that latency is measured with, 0 for all cores.
        overlay: The training runtime, which computes the gradients.
        progress: Is told how far it is.

    Raises:
        OnnxqError: If the model or the data cannot be used, or the target cannot be reached.
    """
    if (flops is None) == (latency is None):
        raise RecipeError("give one target, flops or latency")
    for name, value in (("flops", flops), ("latency", latency)):
        if value is not None and not 0 < value < 1:
            raise RecipeError(f"target {name}: found {value:g}; must be between 0 and 1, the part that is left")
    wanted = recipe_of(recipe, None) if recipe is not None else Recipe()
    graph, _ = open_model(model)
    arrays = _arrays(data)
    sensitivity, labelled = _sensitivity(graph.copy(), arrays, overlay, progress)
    run_passes(
        PassManager([AssignNames(), LiftConstants(), FoldConstants(), InferShapes()]),
        graph,
        context_for(wanted, None, 1, None),
    )
    cost = model_cost(graph)
    search = Search(find_channels(graph), cost, sensitivity, _eligible(wanted, graph), (multiple, most))
    note = () if labelled else ("no labels are given: sensitivity is that of the outputs, in random directions",)
    if flops is not None:
        found = _recipe(wanted, search.reach(flops), multiple)
        return Ratios(found, _left(graph, found, cost), None, note)
    assert latency is not None  # noqa: S101 - one of both is given
    return _by_latency(graph, wanted, search, latency, (multiple, threads), arrays, note)


def _eligible(recipe: Recipe, graph: GraphModel) -> set[str]:
    """Layers that no rule excludes."""
    asked = recipe.replace(prune=ChannelPrune(ratio=0.5))
    return {label(n) for n in graph.nodes() if isinstance(asked.resolve(label(n), str(n.op)).prune, ChannelPrune)}


def _recipe(base: Recipe, ratios: Mapping[str, float], multiple: int) -> Recipe:
    rules = [
        {"match": {"node": name}, "prune": {"kind": "channels", "ratio": ratio, "multiple": multiple}}
        for name, ratio in ratios.items()
    ]
    content = base.replace(prune=None).to_dict(defaults=False)
    kept = [r for r in content.get("rules", []) or [] if isinstance(r, dict)]  # type: ignore[attr-defined]
    return Recipe.from_dict({**content, "rules": [*kept, *rules]})


def _left(graph: GraphModel, recipe: Recipe, cost: ModelCost) -> float:
    return prune(graph, recipe=recipe).after.flops / cost.flops


def _by_latency(
    graph: GraphModel,
    base: Recipe,
    search: Search,
    target: float,
    how: tuple[int, int],
    arrays: Mapping[str, Array],
    notes: tuple[str, ...],
) -> Ratios:
    """Halve the interval of operations until the latency fits."""
    multiple, threads = how
    feed = {i.name: arrays[i.name][:1].astype(i.dtype, copy=False) for i in inputs_of(graph)}
    dense = make_session(graph, threads=threads)
    low, high = 0.0, 1.0
    best: Ratios | None = None
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        try:
            ratios = search.reach(middle)
        except TrainingError:
            low = middle
            continue
        recipe = _recipe(base, ratios, multiple)
        smaller = prune(graph, recipe=recipe)
        found = measure(dense, make_session(smaller.graph, threads=threads), feed, threads=threads, seconds=0.7).ratio
        if found <= target:
            best = Ratios(recipe, smaller.after.flops / smaller.before.flops, found, notes)
            low = middle
        else:
            high = middle
    if best is None:
        raise TrainingError(
            f"no pruning found that leaves {target:g} of the latency on this machine; give a larger target, or prune "
            "more layers"
        )
    return best


# ---- sensitivity


def _sensitivity(
    graph: GraphModel, arrays: Mapping[str, Array], overlay: Overlay | None, progress: Progress | None
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """``sum |weight * gradient|`` of each output channel by layer, and whether labels were used."""
    ctx = context_for(Recipe(), None, 1, None)
    run_passes(PassManager(preparation(Recipe(), ctx.target, select=False)), graph, ctx)
    graph.sweep()
    layers = {label(layer.node): layer for layer in find_channels(graph).layers}
    weights = {name: np.asarray(graph.value(layer.weight)) for name, layer in layers.items()}
    names = {name: str(layer.weight.name) for name, layer in layers.items()}
    trained = set(trainable(graph))
    output = str(graph.outputs[0].name)
    inputs = {i.name: i.dtype for i in inputs_of(graph)}
    legalize = LegalizeForTraining(tuple(n for n in trained if n in names.values()), (output,))
    run_passes(PassManager([legalize], initial=frozenset({Fact.LEARNING, Fact.SHAPES})), graph, ctx)
    labelled = LABELS in arrays
    proto = _with_loss(graph, output, labelled=labelled)
    missing = [n for n in inputs if n not in arrays]
    if missing:
        raise DataError(f"the samples lack {missing[0]!r}; found {', '.join(arrays)}")
    known = {t.name for t in proto.graph.initializer}
    wanted = {layer: name for layer, name in names.items() if name in known and name in trained}
    batch, count = _batches(graph, len(arrays[next(iter(inputs))]))
    total = {layer: np.zeros(layers[layer].layout.out_channels) for layer in wanted}
    data = proto.SerializeToString()
    with Worker(overlay) as worker:
        for start in range(0, count, batch):
            feed = {n: np.ascontiguousarray(arrays[n][start : start + batch], dtype=t) for n, t in inputs.items()}
            if labelled:
                extra = {LABELS: np.ascontiguousarray(arrays[LABELS][start : start + batch], dtype=np.int64)}
            else:
                extra = _directions(graph, feed, output, start)
            gradients = worker.gradient(data, sorted(set(wanted.values())), {**feed, **extra})
            for layer, name in wanted.items():
                layout = layers[layer].layout
                weight, gradient = (a.reshape(layout.view) for a in (weights[layer], gradients[name]))
                total[layer] += taylor_norms(weight, gradient, out_first=layout.out_first)
            if progress is not None:
                progress("sensitivity", min(start + batch, count), count)
    return total, labelled


def _with_loss(graph: GraphModel, output: str, *, labelled: bool) -> onnx.ModelProto:
    """The model with a scalar as its first output."""
    proto = onnx.shape_inference.infer_shapes(graph.to_proto())
    if labelled:
        add_loss(proto, TrainingConfig())
    else:
        _project(proto, output)
    proto.ir_version = min(proto.ir_version, 10)
    return proto


def _batches(graph: GraphModel, samples: int) -> tuple[int, int]:
    """Samples at a time, and how many are used; a model of a fixed batch takes no others.

    Raises:
        DataError: If there are too few.
    """
    shape = graph.shape(graph.inputs[0])
    fixed = shape[0] if shape else None
    if not isinstance(fixed, int):
        return _BATCH, min(samples, _SAMPLES)
    if samples < fixed:
        raise DataError(f"the model takes {fixed} samples at a time; only {samples} are given")
    return fixed, min(samples, max(_SAMPLES, fixed)) // fixed * fixed


def _directions(graph: GraphModel, feed: Mapping[str, Array], output: str, seed: int) -> dict[str, Array]:
    """Random signs of the output's shape."""
    shape = make_session(graph).run([output], dict(feed))[0].shape
    signs = np.random.default_rng(seed).integers(0, 2, shape) * 2 - 1
    return {_PROJECTION: signs.astype(np.float32)}


def _project(model: onnx.ModelProto, output: str) -> None:
    """Let the first output be the sum of the outputs in a direction that is fed.

    The distance to the float model's outputs has no gradient at the float model: it is the least there.
    """
    value = next(v for v in model.graph.output if v.name == output)
    dims = [d.dim_param or d.dim_value or None for d in value.type.tensor_type.shape.dim]
    model.graph.input.append(helper.make_tensor_value_info(_PROJECTION, TensorProto.FLOAT, dims))
    model.graph.node.append(helper.make_node("Mul", [output, _PROJECTION], [f"{LOSS}/projected"], name=f"{LOSS}/mul"))
    model.graph.node.append(
        helper.make_node("ReduceMean", [f"{LOSS}/projected"], [LOSS], name=f"{LOSS}/mean", keepdims=0)
    )
    rest = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []), *rest])


def _arrays(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Array]:
    if isinstance(source, Mapping):
        return {str(name): np.asarray(value) for name, value in source.items()}
    try:
        with np.load(Path(source), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise DataError(f"{source} does not exist") from None
    except (OSError, ValueError, AttributeError) as err:
        raise DataError(f"{source} cannot be read as an .npz file of arrays: {err}") from err
