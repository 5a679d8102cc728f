"""What a graph must be fed, as the readers of calibration data want to know it."""

from __future__ import annotations

import numpy as np

from onnxq.calib.feeds import InputInfo
from onnxq.errors import ModelError
from onnxq.graph import GraphModel


def inputs_of(graph: GraphModel) -> tuple[InputInfo, ...]:
    """The inputs of a graph.

    Raises:
        ModelError: If an input is a sequence, a map or of a type numpy lacks.
    """
    found = []
    for tensor in graph.inputs:
        dtype = graph.dtype(tensor)
        if dtype is None:
            raise ModelError(f"input {tensor.name!r} is no plain tensor; calibration data cannot be given for it")
        found.append(InputInfo(tensor.name, np.dtype(dtype), graph.shape(tensor)))
    return tuple(found)
