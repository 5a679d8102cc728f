"""Writes the plan into the graph as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import code_dtype
from onnxq.algos.bias_correct import quantize_bias
from onnxq.algos.weight import quantize_weight
from onnxq.errors import GraphError
from onnxq.graph import GraphModel, LazyArray, Node, Tensor, Use
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._bias import bias_place
from onnxq.passes._linear import label
from onnxq.passes._patterns import ONE_KERNEL, fused_patterns
from onnxq.passes._specs import keeps_codes
from onnxq.passes._weights import weight_value
from onnxq.plan import ActivationPlan, Plan, WeightPlan
from onnxq.spec import PerAxis, PerBlock, PerTensor, QuantParams

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.targets import Target

_INT32 = (1 << 31) - 1


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Replaces planned tensors by codes.

    Given:
        a plan and its numbers.
    Result:
        weights are integer constants behind a DequantizeLinear, biases are int32 constants whose scale
        is that of the input times that of the weight; each planned activation passes one QuantizeLinear
        and one DequantizeLinear. Relus and Clips that saturation replaces are gone. Names of graph
        outputs, and of every tensor that still exists, are kept.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.PARAMS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.STATS})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Insert.

        Raises:
            GraphError: If the plan does not fit the graph.
        """
        plan = ctx.plan or Plan()
        fused = frozenset(n for n, why in fused_patterns(graph).items() if why in ONE_KERNEL)
        writer = _Writer(graph, plan, ctx.params, ctx.target)
        for weight in plan.weights:
            writer.weight(weight)
        for name in plan.absorbed:
            writer.drop(name)
        for activation in plan.activations.values():
            writer.activation(activation)
        writer.keep_float_layers()
        if ctx.target.copies_decoders:
            writer.keep_fused(fused)
        graph.sort()
        return PassReport(changed=len(plan.weights) + len(plan.activations))

    def verify(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Raise `GraphError` if a planned activation has no QuantizeLinear."""
        done = {n.inputs[0].name for n in graph.nodes("QuantizeLinear")}
        done |= {n.inputs[0].name for n in graph.nodes("Clip", "Max")}  # fewer codes than the type has; float8
        done |= {n.outputs[0].name for n in graph.nodes("DequantizeLinear")}  # where the name had to stay behind it
        for activation in (ctx.plan or Plan()).activations.values():
            if activation.tensor not in done:
                raise GraphError(f"activation {activation.tensor!r} was planned and has no QuantizeLinear")


class _Writer:
    def __init__(self, graph: GraphModel, plan: Plan, params: dict[str, QuantParams], target: Target) -> None:
        self._graph = graph
        self._plan = plan
        self._params = params
        self._target = target
        self._weights: dict[str, Tensor] = {}
        self._numbers: dict[str, tuple[Tensor, Tensor]] = {}

    # ---- weights and biases

    def weight(self, plan: WeightPlan) -> None:
        """Put codes in the place of a weight and of its bias."""
        node = self._graph.node(plan.node)
        place = bias_place(self._graph, node) if plan.bias else None
        params = self._params[plan.key]
        if plan.key not in self._weights:
            self._weights[plan.key] = self._coded_weight(plan, params)
        self._graph.set_input(node, plan.index, self._weights[plan.key])
        if node.op == "Gather" and keeps_codes(params.spec, self._target):
            self._rows(node, self._weights[plan.key])
        if place is not None:
            self._bias(*place, plan, params)

    def _coded_weight(self, plan: WeightPlan, params: QuantParams) -> Tensor:
        source = self._graph.node(plan.node).inputs[plan.index]  # its numbers are not held: they may be a memmap
        shape = weight_value(self._graph, plan).shape
        codes = LazyArray(shape, code_dtype(params.spec), partial(_codes, self._graph, source, params))
        base = plan.key
        constant = self._graph.add_constant(f"{base}_quantized", codes, qtype=params.spec.qtype)
        return self._dequantize(base, constant, self._constants(base, params), params)

    def _rows(self, node: Node, table: Tensor) -> None:
        """Codes for what a lookup gives: those of the table, so that it can pick them without converting it."""
        graph, result = self._graph, node.outputs[0]
        dequantize = graph.producer(table)
        numbers = dequantize.inputs[1:]
        if graph.is_output(result) or graph.read_by_subgraph(result):
            floats = graph.new_variable(f"{result.name}_float", np.float32, graph.shape(result))
            graph.replace_output(node, 0, floats)
            self._convert(result.name, floats, numbers, result)
        else:
            uses = graph.consumers(result)
            graph.replace_uses(result, self._convert(result.name, result, numbers), uses)

    def _bias(self, node: Node, index: int, plan: WeightPlan, params: QuantParams) -> None:
        bias = np.asarray(self._graph.value(node.inputs[index])).reshape(-1)
        coded = quantize_bias(bias, float(self._params[plan.input_key].scale), params.scale, limit=_INT32)
        if coded.enlarged.any() and self._graph.node(plan.node) is not node:
            return  # an Add can do without codes; for the bias of a layer the scale of the weight has been chosen
        base = f"{plan.node}_bias"
        per_tensor = isinstance(params.spec.granularity, PerTensor)
        scale = coded.scale[:1].reshape(()) if per_tensor else coded.scale
        constant = self._graph.add_constant(f"{base}_quantized", coded.codes)
        numbers = (
            self._graph.add_constant(f"{base}_scale", scale),
            self._graph.add_constant(f"{base}_zero_point", np.zeros(scale.shape, np.int32)),
        )
        attrs = {} if per_tensor else {"axis": 0}
        out = self._graph.add_node(
            "DequantizeLinear", [constant, *numbers], name=f"{base}_dequantize",
            outputs=[f"{base}_dequantized"], attrs=attrs, dtype=np.float32, shape=bias.shape,
        )  # fmt: skip
        self._graph.set_input(node, index, out.outputs[0])

    # ---- activations

    def drop(self, name: str) -> None:
        """Take out a Relu or Clip; what was in front of it now makes its output."""
        node = self._graph.node(name)
        maker, result = self._graph.producer(node.inputs[0]), node.outputs[0]
        if maker is None:
            raise GraphError(f"node {name!r} has no producer to take its place")
        index = next(i for i, t in enumerate(maker.outputs) if t is node.inputs[0])
        self._graph.remove_node(node)
        self._graph.replace_output(maker, index, result)

    def activation(self, plan: ActivationPlan) -> None:
        """Let a tensor pass QuantizeLinear and DequantizeLinear on its way to its readers."""
        graph = self._graph
        tensor = graph.tensor(plan.tensor)
        if plan.everywhere:
            if graph.is_output(tensor):
                self._output(tensor, plan)
                return
            uses = graph.consumers(tensor)
            captured = graph.read_by_subgraph(tensor)
        else:
            uses = tuple(Use(graph.node(name), index) for name, index in plan.readers)
            captured = False
        if captured:  # bodies follow the name of the tensor, so the float one gets a new name
            self._output(tensor, plan)
            return
        result = self._pair(tensor, plan)
        graph.replace_uses(tensor, result, uses)

    def keep_float_layers(self) -> None:
        """Put something between codes and layers that stay float, where the backend would give these codes as well.

        A Clip without limits changes nothing, and no optimizer takes it away.
        """
        graph = self._graph
        guarded: dict[str, Tensor] = {}
        for node in graph.nodes(*self._target.codes_weights) if self._target.codes_weights else ():
            tensor = node.inputs[0]
            maker = graph.producer(tensor)
            if maker is None or maker.op != "DequantizeLinear" or not graph.is_constant(node.inputs[1]):
                continue
            if tensor.name not in guarded:
                guarded[tensor.name] = graph.add_node(
                    "Clip", [tensor], name=f"{tensor.name}_kept_float", dtype=np.float32, shape=graph.shape(tensor)
                ).outputs[0]
            graph.set_input(node, 0, guarded[tensor.name])

    def keep_fused(self, fused: frozenset[str]) -> None:
        """Let all float readers of decoded values read one tensor, where some are parts of one kernel.

        A backend that gives each of them a DequantizeLinear of its own would not know the pattern any more.
        """
        graph = self._graph
        floats = {d.node for d in self._plan.decisions if d.role == "float"}
        for node in graph.nodes("DequantizeLinear"):
            result = node.outputs[0]
            uses = [u for u in graph.consumers(result) if label(u.node) in floats]
            if len(uses) > 1 and any(label(u.node) in fused for u in uses):
                graph.replace_uses(result, self._kept(f"{node.name}_together", result), uses)

    def _output(self, tensor: Tensor, plan: ActivationPlan) -> None:
        """Codes for all readers of a tensor whose name must stay: its producer gets a new one."""
        graph = self._graph
        maker = graph.producer(tensor)
        index = next(i for i, t in enumerate(maker.outputs) if t is tensor)
        floats = graph.new_variable(f"{tensor.name}_float", np.float32, graph.shape(tensor))
        graph.replace_output(maker, index, floats)
        self._pair(floats, plan, tensor)

    def _pair(self, tensor: Tensor, plan: ActivationPlan, result: Tensor | None = None) -> Tensor:
        params = self._params[plan.key]
        if params.spec.bits < params.spec.qtype.bits:
            tensor = self._limited(plan.key, tensor, params)
        if not (params.spec.qtype.floating and self._target.float8_kept):
            return self._convert(plan.key, tensor, self._shared(plan, params), result)
        if self._graph.producer(tensor) is not None:
            tensor = self._kept(f"{plan.key}_source", tensor)
        return self._kept(plan.key, self._convert(plan.key, tensor, self._shared(plan, params)), result)

    def _limited(self, name: str, tensor: Tensor, params: QuantParams) -> Tensor:
        """The values that have codes: QuantizeLinear saturates only where its type ends."""
        limits = [
            self._graph.add_constant(f"{name}_{end}", np.asarray(value, np.float32))
            for end, value in (("low", params.low), ("high", params.high))
        ]
        return self._graph.add_node(
            "Clip", [tensor, *limits], name=f"{name}_limit", outputs=[f"{name}_limited"], dtype=np.float32,
            shape=self._graph.shape(tensor),
        ).outputs[0]  # fmt: skip

    def _kept(self, name: str, tensor: Tensor, result: Tensor | None = None) -> Tensor:
        """Put something between, so that a backend neither merges what is on both sides nor repeats it.

        A Max of one input changes nothing, and no optimizer takes it away.
        """
        return self._graph.add_node(
            "Max", [tensor], name=f"{name}_kept", outputs=[f"{name}_kept" if result is None else result],
            dtype=np.float32, shape=self._graph.shape(tensor),
        ).outputs[0]  # fmt: skip

    def _convert(self, name: str, tensor: Tensor, numbers: Sequence[Tensor], result: Tensor | None = None) -> Tensor:
        """QuantizeLinear and DequantizeLinear behind `tensor`, called after `name`."""
        graph = self._graph
        codes = graph.add_node(
            "QuantizeLinear", [tensor, *numbers], name=f"{name}_quantize", outputs=[f"{name}_quantized"],
            dtype=graph.dtype(numbers[1]), shape=graph.shape(tensor),
        ).outputs[0]  # fmt: skip
        return graph.add_node(
            "DequantizeLinear", [codes, *numbers], name=f"{name}_dequantize",
            outputs=[f"{name}_dequantized" if result is None else result], dtype=np.float32, shape=graph.shape(tensor),
        ).outputs[0]  # fmt: skip

    def _shared(self, plan: ActivationPlan, params: QuantParams) -> tuple[Tensor, Tensor]:
        if plan.group not in self._numbers:
            self._numbers[plan.group] = self._constants(plan.group, params)
        return self._numbers[plan.group]

    # ---- both

    def _constants(self, base: str, params: QuantParams) -> tuple[Tensor, Tensor]:
        zero_point = params.zero_point.astype(code_dtype(params.spec))
        return (
            self._graph.add_constant(f"{base}_scale", params.scale),
            self._graph.add_constant(f"{base}_zero_point", zero_point, qtype=params.spec.qtype),
        )

    def _dequantize(self, base: str, codes: Tensor, numbers: tuple[Tensor, Tensor], params: QuantParams) -> Tensor:
        attrs: dict[str, object] = {}
        match params.spec.granularity:
            case PerAxis(axis=axis):
                attrs = {"axis": axis}
            case PerBlock(axis=axis, size=size):
                attrs = {"axis": axis, "block_size": size}
        return self._graph.add_node(
            "DequantizeLinear", [codes, *numbers], name=f"{base}_dequantize",
            outputs=[f"{base}_dequantized"], attrs=attrs, dtype=np.float32, shape=self._graph.shape(codes),
        ).outputs[0]  # fmt: skip


def _codes(graph: GraphModel, source: Tensor, params: QuantParams) -> NDArray[np.integer]:
    return quantize_weight(graph.value(source), params)
