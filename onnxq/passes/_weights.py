"""The numbers of planned weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphModel
from onnxq.plan import WeightPlan


def weight_value(graph: GraphModel, plan: WeightPlan) -> NDArray[np.float32]:
    """The floats of a planned weight, a memmap where they are in a file."""
    return graph.value(graph.node(plan.node).inputs[plan.index])
