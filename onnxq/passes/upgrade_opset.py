"""A newer operator set, where the model's own cannot express what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxq.calib.chunks import rechunk
from onnxq.errors import GraphError
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._inputs import inputs_of
from onnxq.passes._same_outputs import largest_deviation

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel

_FIRST_WITH_QDQ = 10
_TOLERANCE = 1e-3
"""A part of the outputs' range: kernels of two operator sets may add in another order."""


@dataclass(frozen=True)
class UpgradeOpset(Pass):
    """Converts the model to at least `minimum`, if it has something that could be quantized.

    A model that cannot be converted keeps its operator set if that has QuantizeLinear at all and the
    conversion was wanted for better accuracy only (`required` says otherwise).

    Given:
        any model.
    Result:
        the same function at opset `minimum` or newer; all nodes and tensors are new objects.

    Attributes:
        minimum: The operator set wanted.
        required: The oldest one that will do.
        ops: Operator types that are worth it.
    """

    minimum: int = 13
    required: int = _FIRST_WITH_QDQ
    ops: tuple[str, ...] = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")

    invalidates: ClassVar[frozenset[Fact]] = frozenset(Fact)
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Convert.

        Raises:
            GraphError: If the model cannot be converted and its operator set will not do.
        """
        before = graph.opset
        if before >= self.minimum or not graph.nodes(*self.ops):
            return PassReport()
        try:
            _convert(graph, self.minimum, ctx)
        except GraphError as err:
            if before >= self.required:
                return PassReport(notes=(f"kept at opset {before}: {err}",))
            raise GraphError(
                f"the model is at opset {before} and quantizing it needs {self.required} or newer, to which it "
                f"cannot be converted ({err}); export it again at opset {self.minimum}"
            ) from err
        return PassReport(changed=1, notes=(f"converted from opset {before} to {graph.opset}",))


def _convert(graph: GraphModel, version: int, ctx: QuantContext) -> None:
    """Convert, and run both forms on one sample where there is one.

    Raises:
        GraphError: If the model cannot be converted, or computes something else then; it is unchanged.
    """
    converted = graph.copy()
    converted.upgrade_opset(version)
    if ctx.reader is not None:
        inputs = inputs_of(graph)
        _, sample = next(rechunk(ctx.reader, 1, inputs))
        deviation = largest_deviation(graph, converted, sample)
        if deviation > _TOLERANCE:
            raise GraphError(f"onnx converts it to something else, with outputs {deviation:.2g} of their range away")
    graph.upgrade_opset(version)
