"""Measures the channels of what balanced layers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.calib.points import StatisticPoint, StatKind
from onnxq.errors import DataError
from onnxq.graph import GraphModel
from onnxq.passes._balance import layers_to_balance
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._collect import measure

if TYPE_CHECKING:
    from onnxq.context import QuantContext


@dataclass(frozen=True)
class CalibrateChannels(Pass):
    """Runs the model over the calibration data once, for BalanceDmq.

    Given:
        a plan, and ``ctx.reader`` if the recipe wants planned layers balanced.
    Result:
        the graph unchanged; ``ctx.stats`` holds the largest magnitude of each channel of the inputs of
        these layers, and nothing else.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})
    preserves_function: ClassVar[bool] = True

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `DataError` if data are needed and there are none."""
        layers, _ = layers_to_balance(graph, ctx)
        if layers and ctx.reader is None:
            raise DataError(
                f"{len(layers)} layers to balance need calibration data and none were given; "
                "give samples (--data), or ask for random ones by name (--random, calibration: {random: true})"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Measure.

        Raises:
            CalibrationError: If an activation holds NaN or infinity.
            DataError: If the data do not fit the model.
        """
        layers, _ = layers_to_balance(graph, ctx)
        axes = {layer.tensor.name: layer.axis for layer in layers}
        points = [StatisticPoint(name, StatKind.CHANNEL_ABSMAX, axis) for name, axis in axes.items()]
        ctx.stats = measure(graph, ctx, points)
        if not ctx.stats:
            return PassReport()
        return PassReport(notes=(f"the channels of {len(points)} tensors measured over {ctx.samples} samples",))
