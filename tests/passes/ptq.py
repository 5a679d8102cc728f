"""Post-training quantization pass by pass, for tests of single passes.

graph, ctx = planned(model)                       # up to SelectLayers
graph, ctx = planned(model, data={"x": samples})  # and ready for Calibrate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxq.calib.readers import as_reader
from onnxq.context import QuantContext
from onnxq.graph import GraphModel
from onnxq.passes._inputs import inputs_of
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.passes.select_layers import SelectLayers
from onnxq.recipe import Recipe
from onnxq.stats import TensorStats
from onnxq.targets import get_target
from tests.graphs import apply

PLAN = (AssignNames(), LiftConstants(), FoldConstants(), InferShapes(), NormalizeGemm(), SelectLayers())


def planned(
    model: onnx.ModelProto,
    *,
    data: Any = None,
    recipe: Mapping[str, object] | Recipe | None = None,
    threads: int = 1,
) -> tuple[GraphModel, QuantContext]:
    """The graph after SelectLayers, and its context with a reader over `data`."""
    graph = GraphModel.from_proto(model)
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.from_dict(recipe or {})
    ctx = QuantContext(recipe=chosen, target=get_target(chosen.target), threads=threads)
    if data is not None:
        ctx.reader = as_reader(data, inputs_of(graph))
    apply(graph, *PLAN, ctx=ctx)
    return graph, ctx


def stats_of(low: float, high: float, *, count: int = 100) -> TensorStats:
    """Statistics with a histogram of `count` values spread evenly over a range."""
    return TensorStats.from_array(np.linspace(low, high, count, dtype=np.float32))
