"""Decides which nodes compute with codes they get when the model runs, and says why the rest stays float."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import RecipeError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.opinfo import OPS
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._dynamic_forms import ATTENTION, PRODUCTS, RECURRENT, product_of
from onnxq.passes._linear import kind, label, optional_input, why_not_constant
from onnxq.plan import Decision, Plan, WeightPlan
from onnxq.recipe import AbsMax, ActivationConfig, Dynamic, Settings, WeightConfig, WeightMSE
from onnxq.spec import Granularity, PerAxis, PerBlock, PerTensor, QType, QuantSpec

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_QUANTIZED_OPS = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"),
    *("QAttention", "AscendQuant", "AscendDequant"),
)
_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_CONV = (
    "ONNX Runtime's convolution of codes that come with the activation (ConvInteger) takes 4 to 13 times as long as "
    "its float one; use scheme static for convolutions"
)
_MIN_ROW = 4
"""Elements per scale from which on a table shrinks enough: codes, scale and zero point of fewer are no smaller."""


@dataclass(frozen=True)
class SelectDynamic(Pass):
    """Writes ``ctx.plan``: the weights that get codes, and why the other nodes stay float.

    Products with a constant factor get int8 weights with one scale per output, tables of a Gather one scale and
    zero point per row, recurrent layers one scale per gate and output. Activations are no part of the plan: their
    ranges are taken when the model runs. Products of two activations are quantized where the scheme says so.

    Given:
        a named graph with lifted constants and known element types.
    Result:
        the graph unchanged; `ctx.plan`.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS_LIFTED, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Judge every node.

        Raises:
            RecipeError: If a name of the recipe matches nothing, or it asks for what codes of this kind cannot be.
        """
        nodes = graph.nodes()
        known = frozenset(OPS) | {*RECURRENT, ATTENTION}
        ctx.recipe.check_names(((label(n), kind(n)) for n in nodes), op_types=known)
        done = graph.nodes(*_QUANTIZED_OPS)
        if done:
            reason = f"the model is quantized already ({len(done)} nodes such as {done[0].op}); give the float model"
            ctx.plan = Plan(tuple(Decision(label(n), kind(n), "float", reason) for n in nodes))
            return PassReport(notes=(reason,))
        scheme = ctx.recipe.scheme if isinstance(ctx.recipe.scheme, Dynamic) else Dynamic()
        judge = _Judge(graph, scheme)
        decisions = tuple(judge.decide(n, ctx.recipe.resolve(label(n), kind(n))) for n in nodes)
        ctx.plan = Plan(decisions, weights=tuple(judge.weights))
        return PassReport(skipped=tuple(Skip(d.node, d.reason) for d in ctx.plan.left_float()))


@dataclass
class _Judge:
    graph: GraphModel
    scheme: Dynamic
    weights: list[WeightPlan] = field(default_factory=list)

    def decide(self, node: Node, settings: Settings) -> Decision:
        """What becomes of a node; the weights it reads are added to the plan."""
        reason = settings.reason if settings.skip else self._examine(node, settings)
        return Decision(label(node), kind(node), "float" if reason else "quantized", reason)

    def _examine(self, node: Node, settings: Settings) -> str:
        op = kind(node)
        if op in _BODIES:
            return f"the bodies of {node.op} nodes are left float"
        if op in ("Conv", "ConvTranspose"):
            return _CONV
        if op in PRODUCTS:
            return self._product(node, settings)
        if op == "Gather":
            return self._lookup(node, settings)
        if op in RECURRENT:
            return self._recurrent(node, settings)
        if op == ATTENTION:
            return self._attention(node, settings)
        return f"{op} computes with floats: codes that come with the activations are for products of matrices"

    # ---- one kind of node each

    def _product(self, node: Node, settings: Settings) -> str:
        graph, form = self.graph, product_of(self.graph, node)
        for tensor in (form.left.tensor, form.right.tensor, *([] if form.bias is None else [form.bias])):
            if not graph.is_float32(tensor):
                return _why_not_float32(graph, tensor)
        if form.left.constant and form.right.constant:
            return "both its inputs are constant"
        _check_activations(settings.activations)
        weight = form.weight
        if weight is None:
            return self._variables(node)
        other = form.right if weight is form.left else form.left
        if weight is form.left and graph.rank(other.tensor) is None:
            return f"its weight is on the left and the rank of {other.tensor.name!r} is not known"
        rank = graph.rank(weight.tensor) or 0
        return self._add(node, weight.index, settings, weight.channel_axis(rank), activation=other.tensor)

    def _variables(self, node: Node) -> str:
        if self.scheme.variables:
            return ""
        return "it multiplies two activations, which is no faster with codes; scheme.variables: true quantizes it"

    def _lookup(self, node: Node, settings: Settings) -> str:
        graph, table = self.graph, node.inputs[0]
        reason = why_not_constant(graph, table, "table")
        if reason is not None:
            return reason
        shape = [int(s) for s in graph.shape(table) or () if isinstance(s, int)]
        axis = int(node.attrs.get("axis", 0)) % max(len(shape), 1)
        per_tensor = settings.weights.granularity == "per_tensor"
        if shape and not per_tensor and math.prod(shape) // max(shape[axis], 1) < _MIN_ROW:
            return f"its table {table.name!r} has so short rows that a scale for each takes as much as it saves"
        return self._add(node, 0, settings, axis, symmetric=False)

    def _recurrent(self, node: Node, settings: Settings) -> str:
        graph = self.graph
        if int(node.attrs.get("layout", 0)) and node.op == "LSTM":
            return "its layout is 1; ONNX Runtime's kernel takes layout 0 only"
        if not graph.is_float32(node.inputs[0]):
            return _why_not_float32(graph, node.inputs[0])
        for index in (1, 2):
            reason = why_not_constant(graph, node.inputs[index], "weight")
            if reason is not None:
                return reason
            if 0 in (graph.shape(node.inputs[index]) or ()):
                return f"its weight {node.inputs[index].name!r} is empty"
        activation = node.inputs[0] if node.op == "LSTM" else None
        for index in (1, 2):
            self._add(node, index, settings, 1, activation=activation)
        return ""

    def _attention(self, node: Node, settings: Settings) -> str:
        graph = self.graph
        reason = why_not_constant(graph, node.inputs[1], "weight")
        if reason is None and optional_input(node, 2) is None:
            reason = "it has no bias, which ONNX Runtime's kernel for codes needs"
        for index in (4, 5, 6):
            if reason is None and optional_input(node, index) is not None:
                reason = f"ONNX Runtime's kernel for codes has no input like its {node.inputs[index].name!r}"
        if reason is None and "qkv_hidden_sizes" in node.attrs:
            reason = "its projections differ in size, which ONNX Runtime's kernel for codes does not take"
        return reason or self._add(node, 1, settings, 1, activation=node.inputs[0])

    # ---- weights

    def _add(
        self,
        node: Node,
        index: int,
        settings: Settings,
        axis: int | None,
        *,
        symmetric: bool = True,
        activation: Tensor | None = None,
    ) -> str:
        """Plan a weight; returns why that cannot be."""
        tensor = node.inputs[index]
        shape = self.graph.shape(tensor) or ()
        if 0 in shape:
            return f"its weight {tensor.name!r} is empty"
        config = settings.weights
        blocks = (len(shape) - 1, int(shape[-1] or 0)) if node.op in RECURRENT else None
        spec = QuantSpec(_qtype(config), _granularity(config, axis, blocks), _symmetric(config, symmetric), 8)
        spec = QuantSpec(spec.qtype, spec.granularity, spec.symmetric, 8, spec.symmetric and spec.qtype.signed)
        method = config.method or AbsMax()
        if not isinstance(method, (AbsMax, WeightMSE)):
            raise RecipeError(f"weights.method: found {method.name}; the scheme dynamic takes absmax or mse")
        source = "" if activation is None else activation.name
        plan = WeightPlan(node.name, index, tensor.name, tensor.name, spec, method, input=source)
        self.weights.append(self._named(plan))
        return ""

    def _named(self, plan: WeightPlan) -> WeightPlan:
        """The plan with a key that only readers with the same wishes share."""
        known = [w for w in self.weights if w.tensor == plan.tensor]
        same = next((w for w in known if _wishes(w) == _wishes(plan)), None)
        key = plan.tensor if not known else f"{plan.tensor}_{plan.node}_{plan.index}" if same is None else same.key
        return WeightPlan(
            plan.node, plan.index, plan.tensor, key, plan.spec, plan.method, input=plan.input, input_key=plan.input_key
        )


def _wishes(plan: WeightPlan) -> tuple[object, ...]:
    return plan.spec, plan.method, plan.index, bool(plan.input)


def _qtype(config: WeightConfig) -> QType:
    if (config.bits or 8) != 8:
        raise RecipeError(f"weights.bits: found {config.bits}; weights of the scheme dynamic have 8")
    qtype = QType.INT8 if config.type is None else QType.parse(config.type)
    if qtype not in (QType.INT8, QType.UINT8):
        raise RecipeError(f"weights.type: found {qtype.label}; the scheme dynamic takes int8 or uint8")
    return qtype


def _symmetric(config: WeightConfig, default: bool) -> bool:
    wanted = default if config.symmetric is None else config.symmetric
    if default and not wanted:
        raise RecipeError("weights.symmetric: products of the scheme dynamic take symmetric weights; leave out false")
    return wanted


def _granularity(config: WeightConfig, axis: int | None, blocks: tuple[int, int] | None) -> Granularity:
    """One scale per output; of recurrent layers, whose outputs lie on two axes, per run along the last axis."""
    if config.granularity not in (None, "per_tensor", "per_axis"):
        raise RecipeError("weights.granularity: the scheme dynamic takes per_tensor or per_axis")
    if config.granularity == "per_tensor" or axis is None:
        return PerTensor()
    return PerAxis(axis) if blocks is None else PerBlock(*blocks)


def _check_activations(config: ActivationConfig) -> None:
    if config.type not in (None, "uint8") or config.bits not in (None, 8):
        raise RecipeError("activations: codes of the scheme dynamic are uint8; leave out type and bits")
    if config.symmetric or config.narrow or config.granularity not in (None, "per_tensor"):
        raise RecipeError("activations: codes of the scheme dynamic are asymmetric with one scale; leave that open")
    if config.method is not None:
        raise RecipeError(
            f"activations.method: found {config.method.name}; in the scheme dynamic ranges are those of the values"
        )


def _why_not_float32(graph: GraphModel, tensor: Tensor) -> str:
    found = graph.dtype(tensor)
    if found is None:
        return f"the element type of {tensor.name!r} is not known; run shape inference on the model"
    hint = "; convert the model to float32 first" if found.name in ("float16", "bfloat16", "float64") else ""
    return f"its data {tensor.name!r} are {found.name}, not float32{hint}"
