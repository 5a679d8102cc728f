"""Reads the runnable twin of a model for Ascend: integers stored as floats, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import Dim, GraphModel, Node, Tensor
from onnxq.report.debug_reading import Reading, Source
from onnxq.spec import PerAxis

if TYPE_CHECKING:
    from onnxq.factors import LayerFactors
    from onnxq.plan import WeightPlan
    from onnxq.result import Result

_CODES = ".fakequant.sub"
_RESULT = ".fakedequant.mul"


def read_fake_quant(reading: Reading, original: GraphModel, result: Result) -> None:
    """Say of every tensor that holds integers what they have to be multiplied with.

    Args:
        reading: Of the twin; what is found is added to it.
        original: The float model.
        result: What the model was made with.
    """
    graph = reading.graph
    weights = {w.node: w for w in result.plan.weights}
    for name, factors in result.factors.items():
        if factors.tensor_quantize or not graph.has_node(f"{name}{_RESULT}"):
            continue
        node, last = graph.node(name), graph.node(f"{name}{_RESULT}")
        scale = np.asarray(graph.value(last.inputs[0]), np.float32)
        sums, end = last.inputs[1], last.outputs[0]
        for tensor, factor in _integers(graph, node, factors, scale, weights.get(name)):
            reading.sources[tensor.name] = Source((str(tensor.name),), factor)
        before = original.node(name).attrs if original.has_node(name) else node.attrs
        if bool(node.attrs.get("transB", 0)) != bool(before.get("transB", 0)):
            weight = node.inputs[1]
            turned = partial(_turned, graph, weight, reading.source(weight))
            reading.sources[weight.name] = Source((f"{weight.name} transposed",), make=turned)
        if node.outputs[0] is not sums:  # its bias is added by a node of its own
            reading.sources[node.outputs[0].name] = Source((str(node.outputs[0].name),), scale)
            for tensor in graph.producer(sums).inputs:
                if graph.is_constant(tensor):
                    reading.sources[tensor.name] = Source((str(tensor.name),), _fitting(scale, graph.shape(tensor)))
        reading.sources[sums.name] = Source((str(end.name),))
        reading.names[sums.name] = str(end.name)


def _turned(graph: GraphModel, weight: Tensor, source: Source) -> NDArray[np.float32]:
    return np.asarray(source.values([graph.value(weight)]), np.float32).T


def _integers(
    graph: GraphModel, node: Node, factors: LayerFactors, scale: NDArray[np.float32], plan: WeightPlan | None
) -> Iterator[tuple[Tensor, NDArray[np.float32]]]:
    """The inputs of a layer that hold integers, and their factors."""
    for index, tensor in enumerate(node.inputs):
        if index == 2 and graph.is_constant(tensor):
            yield tensor, _fitting(scale, graph.shape(tensor))
        elif graph.is_constant(tensor):
            yield tensor, _along(plan, factors.scale_w, graph.shape(tensor))
        elif tensor.name and _holds_codes(graph, tensor):
            yield tensor, np.asarray(factors.scale_d, np.float32)


def _holds_codes(graph: GraphModel, tensor: Tensor) -> bool:
    maker = graph.producer(tensor)
    if maker is not None and maker.op == "Pad":
        maker = graph.producer(maker.inputs[0])
    return maker is not None and str(maker.name).endswith(_CODES)


def _fitting(scale: NDArray[np.float32], shape: Sequence[Dim] | None) -> NDArray[np.float32]:
    """One scale per element of a bias."""
    flat = scale.reshape(-1)
    return flat.reshape(()) if flat.size == 1 else flat.reshape(_sizes(shape))


def _along(plan: WeightPlan | None, scale: NDArray[np.float32], shape: Sequence[Dim] | None) -> NDArray[np.float32]:
    """The scales of a weight along its channels."""
    if scale.size == 1:
        return scale.reshape(())
    dims = _sizes(shape)
    axis = plan.spec.granularity.axis if plan is not None and isinstance(plan.spec.granularity, PerAxis) else 0
    if dims[axis] != scale.size:  # the kernel of a ConvTranspose with groups: the inputs of a group share its outputs
        groups = scale.size // dims[1]
        rows = np.repeat(scale.reshape(groups, dims[1]), dims[0] // groups, axis=0)
        return rows.reshape([dims[0], dims[1], *(1 for _ in dims[2:])])
    return scale.reshape([-1 if i == axis else 1 for i in range(len(dims))])


def _sizes(shape: Sequence[Dim] | None) -> list[int]:
    return [d for d in shape or () if isinstance(d, int)]
