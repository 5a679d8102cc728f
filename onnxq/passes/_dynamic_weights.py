"""Codes of weights for products with activations that get theirs when the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import weight as weight_methods
from onnxq.algos.affine import code_dtype
from onnxq.algos.weight import quantize_weight
from onnxq.algos.weight.pair_sums import largest_pair_sums, safe_scale
from onnxq.errors import CalibrationError, GraphError
from onnxq.graph import GraphModel, Tensor
from onnxq.passes._dynamic_forms import PRODUCTS, RECURRENT, product_of
from onnxq.passes._weights import weight_value
from onnxq.plan import WeightPlan
from onnxq.spec import PerAxis, PerTensor, QuantParams

_MIDDLE = 128


def find_params(graph: GraphModel, plan: WeightPlan, *, safe_pairs: bool) -> QuantParams:
    """The scales of a planned weight.

    Args:
        graph: Its graph.
        plan: The plan.
        safe_pairs: Leave room where a CPU adds two products in 16 bits.

    Raises:
        GraphError: If the weight holds NaN or infinity.
    """
    method = weight_methods.config_from_dict(plan.method.name, plan.method.parameters())
    weight = weight_value(graph, plan)
    try:
        params = weight_methods.find_params(weight, plan.spec, method)
    except CalibrationError as err:
        raise GraphError(f"weight {plan.tensor!r} of node {plan.node!r}: {err}; mend it, or skip the node") from err
    if not (safe_pairs and plan.input and plan.index and plan.spec.qtype.signed):
        return params  # a weight on the left is given as uint8, whose kernel is exact
    rows, outputs_first = _sums(graph, plan, weight)
    sums = largest_pair_sums(rows, outputs_first=outputs_first)
    if plan.spec.granularity == PerTensor() or weight.ndim <= 2 or not isinstance(plan.spec.granularity, PerAxis):
        scale = safe_scale(params.scale.reshape(-1 if params.scale.ndim else ()), sums).reshape(params.scale.shape)
    else:  # several matrices share the scales of their columns
        scale = safe_scale(params.scale, sums.reshape(-1, len(params.scale)).max(axis=0))
    return QuantParams(plan.spec, scale, params.zero_point)


def _sums(graph: GraphModel, plan: WeightPlan, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool]:
    """The weight as a matrix, one sum of products per row, or per column (then False)."""
    node = graph.node(plan.node)
    if node.op in RECURRENT:
        return weight.reshape(-1, weight.shape[-1]), True
    if weight.ndim == 1:
        return weight.reshape(-1, 1), False
    if weight.ndim > 2:
        return np.moveaxis(weight, -1, -2).reshape(-1, weight.shape[-2]), True
    return weight, node.op in PRODUCTS and product_of(graph, node).right.transposed


@dataclass(frozen=True, slots=True, eq=False)
class CodedWeight:
    """A weight as constants: ``real = scale * (codes - zero_point)``.

    Attributes:
        codes: int8 or uint8.
        scale: float32, in a shape that broadcasts against the product; not yet times alpha.
        zero_point: A scalar of the type of `codes`; None where it is zero.
        sums: float32, the shape of `scale` or of what it broadcasts to: sums of ``codes - zero_point`` over
            what the product sums over, times the scale; None where nobody asked.
    """

    codes: Tensor
    scale: NDArray[np.float32]
    zero_point: Tensor | None
    sums: NDArray[np.float32] | None


class Weights:
    """Writes the codes of each weight once for all its readers.

    Args:
        graph: Where to.
        params: Scales by the keys of the plan.
    """

    def __init__(self, graph: GraphModel, params: dict[str, QuantParams]) -> None:
        self._graph = graph
        self._params = params
        self._codes: dict[tuple[str, bool, bool], Tensor] = {}
        self._zeros: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}

    def params(self, plan: WeightPlan) -> QuantParams:
        """The scales of a planned weight."""
        return self._params[plan.key]

    def codes(self, plan: WeightPlan, source: Tensor, *, transpose: bool = False, unsigned: bool = False) -> Tensor:
        """The codes of a weight as a constant, computed when it is saved.

        Args:
            plan: The plan.
            source: The weight.
            transpose: Swap the last two axes.
            unsigned: Move int8 codes up by 128, to uint8.
        """
        params = self._params[plan.key]
        unsigned = unsigned and params.spec.qtype.signed
        key = (plan.key, transpose, unsigned)
        if key not in self._codes:
            shape = [int(s) for s in self._graph.shape(source) or () if isinstance(s, int)]
            if transpose:
                shape[-2:] = shape[:-3:-1]
            dtype = np.dtype(np.uint8) if unsigned else code_dtype(params.spec)
            function = partial(_codes, params=params, transpose=transpose, unsigned=unsigned)
            lazy = self._graph.derived(source, function, shape=shape, dtype=dtype)
            self._codes[key] = self._graph.add_constant(f"{plan.key}_quantized", lazy)
        return self._codes[key]

    def scale(self, plan: WeightPlan, values: NDArray[np.float32], *, own: bool = False) -> Tensor:
        """The scales of a weight as a constant.

        Args:
            plan: The plan.
            values: Any shape.
            own: Whether they are this reader's alone.
        """
        key = f"{plan.key} {values.shape}"
        if own or key not in self._scales:
            constant = self._graph.add_constant(f"{plan.key}_scale", values)
            if own:
                return constant
            self._scales[key] = constant
        return self._scales[key]

    def zeros(self, values: NDArray[np.integer]) -> Tensor:
        """Zero points as a constant, one for all that are equal.

        Args:
            values: Any shape, the type of the codes.
        """
        key = f"{values.dtype} {values.shape} {values.tobytes().hex()}"
        if key not in self._zeros:
            self._zeros[key] = self._graph.add_constant("zero_point", values)
        return self._zeros[key]

    def factor(self, plan: WeightPlan, source: Tensor, *, transpose: bool, vector: bool, sums: bool) -> CodedWeight:
        """A weight that is one side of a product.

        Args:
            plan: The plan.
            source: The weight.
            transpose: Swap the last two axes.
            vector: Whether the other side has one axis only.
            sums: Whether the sums of the codes are wanted.
        """
        params = self._params[plan.key]
        left = plan.index == 0
        codes = self.codes(plan, source, transpose=transpose, unsigned=left)
        unsigned = left or not params.spec.qtype.signed
        zero_point = self.zeros(np.array(_MIDDLE, np.uint8)) if unsigned else None
        scale = params.scale
        if left and not vector and scale.ndim:
            scale = scale.reshape(-1, 1)
        found = None
        if sums:
            numbers = self._graph.value(codes).astype(np.int64) - (_MIDDLE if unsigned else 0)
            axis = -1 if left or numbers.ndim == 1 else -2
            keep = not vector and numbers.ndim > 1 and (left or numbers.ndim > 2)
            total = numbers.sum(axis=axis, keepdims=keep)
            found = (total * scale.astype(np.float64)).astype(np.float32)
        return CodedWeight(codes, scale, zero_point, found)


def _codes(weight: NDArray[np.float32], *, params: QuantParams, transpose: bool, unsigned: bool) -> NDArray[np.integer]:
    codes: NDArray[np.integer] = quantize_weight(weight, params)
    if unsigned:
        codes = (codes.astype(np.int16) + _MIDDLE).astype(np.uint8)
    return np.ascontiguousarray(np.swapaxes(codes, -1, -2)) if transpose else codes
