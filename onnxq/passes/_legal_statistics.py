"""BatchNormalization that learns: statistics of the batch, running ones on the side."""

from __future__ import annotations

import numpy as np

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node

_MEAN, _VARIANCE = 3, 4


def train_statistics(graph: GraphModel) -> tuple[str, ...]:
    """Put every BatchNormalization into training mode.

    Args:
        graph: A graph of opset 14 or newer.

    Returns:
        Names of the initializers with running means and variances, which training changes in place.

    Raises:
        GraphError: If they are not initializers, or two nodes share them.
    """
    frozen: list[str] = []
    for node in graph.nodes("BatchNormalization"):
        for index in (_MEAN, _VARIANCE):
            tensor = node.inputs[index]
            if not graph.is_constant(tensor) or len(graph.consumers(tensor)) > 1 or tensor.name in frozen:
                raise GraphError(
                    f"node {node.name!r} (BatchNormalization): its running statistics {tensor.name!r} are not an "
                    "initializer of its own, so they cannot be trained; set training.batchnorm: fold"
                )
            frozen.append(str(tensor.name))
        _train(graph, node)
    return tuple(frozen)


def _train(graph: GraphModel, node: Node) -> None:
    name, out, inputs = str(node.name), node.outputs[0], list(node.inputs)
    attrs = {key: node.attrs[key] for key in ("epsilon", "momentum") if key in node.attrs}
    graph.remove_node(node)
    graph.add_node(
        "BatchNormalization",
        inputs,
        name=name,
        attrs={**attrs, "training_mode": 1},
        outputs=[out, f"{name}/running_mean", f"{name}/running_variance"],
        dtype=np.float32,
    )
