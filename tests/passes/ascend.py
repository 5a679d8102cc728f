"""Ascend models pass by pass, for tests: a float model in, its record, deploy model and fake-quant model out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxq.calib.readers import as_reader
from onnxq.context import QuantContext
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, PassManager
from onnxq.passes._inputs import inputs_of
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.collect_factors import CollectFactors
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_ascend import InsertAscend
from onnxq.passes.insert_ascend_fake import InsertAscendFake
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.passes.select_layers import SelectLayers
from onnxq.passes.sweep import Sweep
from onnxq.passes.use_factors import UseFactors
from onnxq.recipe import Recipe
from onnxq.targets import get_target
from tests.graphs import Feed, feeds_for, run
from tests.passes.ascend_reference import outputs_of

PREPARE = (AssignNames(), LiftConstants(), FoldConstants(), InferShapes(), NormalizeGemm())
MEASURE = (SelectLayers(), Calibrate(), ChooseParams(), CollectFactors())


@dataclass(frozen=True)
class Written:
    """What became of a float model, and samples for it."""

    float_model: onnx.ModelProto
    deploy: onnx.ModelProto
    fake: onnx.ModelProto
    ctx: QuantContext
    feeds: Sequence[Feed]

    @property
    def factors(self) -> dict[str, LayerFactors]:
        return dict(self.ctx.factors)

    def values(self, *, of_fake: bool = False) -> dict[str, np.ndarray[Any, Any]]:
        """The initializers of the deploy model, or of the fake-quant model."""
        model = self.fake if of_fake else self.deploy
        return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}

    def node(self, name: str, *, of_fake: bool = False) -> onnx.NodeProto:
        model = self.fake if of_fake else self.deploy
        return next(n for n in model.graph.node if n.name == name)


def context(recipe: Mapping[str, object] | None = None) -> QuantContext:
    return QuantContext(Recipe.from_dict({"target": "ascend"} | dict(recipe or {})), get_target("ascend"), threads=1)


def prepared(model: onnx.ModelProto, ctx: QuantContext) -> GraphModel:
    """The graph in the form that records are for."""
    graph = GraphModel.from_proto(model)
    PassManager(PREPARE).run(graph, ctx)
    return graph


def written(
    model: onnx.ModelProto,
    *,
    recipe: Mapping[str, object] | None = None,
    record: Mapping[str, LayerFactors] | None = None,
    free: int = 4,
) -> Written:
    """Calibrate with random samples, or take a record, and insert in both ways."""
    ctx = context(recipe)
    graph = prepared(model, ctx)
    feeds = [feeds_for(model, seed=seed, free=free) for seed in range(4)]
    ctx.reader = as_reader(feeds, inputs_of(graph))
    facts = PassManager(PREPARE).provides
    PassManager(MEASURE if record is None else (UseFactors(record),), initial=facts).run(graph, ctx)
    fake = graph.copy()
    ready = frozenset({Fact.FACTORS})
    PassManager((InsertAscend(), Sweep()), initial=ready).run(graph, ctx)
    PassManager((InsertAscendFake(), Sweep()), initial=ready).run(fake, ctx)
    return Written(model, graph.to_proto(), fake.to_proto(), ctx, feeds)


def deviations(found: Written) -> tuple[float, float]:
    """Largest difference, over all samples and outputs, to the largest output: deploy to fake, and fake to float."""
    between, rounding = 0.0, 0.0
    for feed in found.feeds:
        floats, fakes, codes = run(found.float_model, feed), run(found.fake, feed), outputs_of(found.deploy, feed)
        assert list(floats) == list(fakes) == list(codes)
        for name, value in floats.items():
            assert fakes[name].shape == codes[name].shape == value.shape
            top = float(np.abs(value).max())
            between = max(between, float(np.abs(codes[name] - fakes[name]).max()) / top)
            rounding = max(rounding, float(np.abs(fakes[name] - value).max()) / top)
    return between, rounding
