"""What has codes but is no plain product: tables, recurrent layers, attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._dynamic_activations import Activations
from onnxq.passes._dynamic_weights import Weights
from onnxq.passes._linear import label, optional_input
from onnxq.plan import WeightPlan

MICROSOFT = "com.microsoft"
_LSTM_INPUTS = 8
_ATTENTION_ATTRIBUTES = frozenset(
    {"num_heads", "unidirectional", "do_rotary", "past_present_share_buffer", "mask_filter_value", "scale"}
)


@dataclass
class Kernels:
    """Writes Gather, LSTM, GRU, RNN and Attention.

    Attributes:
        graph: Where to.
        weights: Gives the codes of weights.
    """

    graph: GraphModel
    weights: Weights

    def lookup(self, node: Node, plan: WeightPlan) -> None:
        """Pick codes, and decode what was picked.

        Args:
            node: A Gather of a constant table.
            plan: The table.
        """
        graph, name, result = self.graph, label(node), node.outputs[0]
        params, indices = self.weights.params(plan), node.inputs[1]
        table = node.inputs[0]
        rank = graph.rank(table) or 0
        axis = int(node.attrs.get("axis", 0)) % rank
        codes = self.weights.codes(plan, table)
        trailing = (-1,) + (1,) * (rank - axis - 1)
        scale = params.scale.reshape(trailing) if params.scale.ndim else params.scale
        zero = params.zero_point.reshape(scale.shape).astype(graph.dtype(codes))
        graph.remove_node(node)
        scale_, zero_ = self.weights.scale(plan, scale), self.weights.zeros(zero)
        if scale.ndim:
            scale_ = self._node("Gather", [scale_, indices], f"{name}_scale", {"axis": 0})
            zero_ = self._node("Gather", [zero_, indices], f"{name}_zero_point", {"axis": 0})
        picked = self._node("Gather", [codes, indices], f"{name}_codes", {"axis": axis})
        number = self._node("Cast", [picked], f"{name}_numbers", {"to": np.dtype(np.float32)})
        level = self._node("Cast", [zero_], f"{name}_level", {"to": np.dtype(np.float32)})
        centred = self._node("Sub", [number, level], f"{name}_centred")
        graph.add_node("Mul", [centred, scale_], name=name, outputs=[result])

    def lstm(self, node: Node, plans: list[WeightPlan]) -> None:
        """Use ONNX Runtime's LSTM that rounds its activations itself, at every step.

        Args:
            node: An LSTM with layout 0.
            plans: Its W and R.
        """
        graph, name = self.graph, label(node)
        inputs = [optional_input(node, i) for i in range(_LSTM_INPUTS)]
        numbers: list[Tensor] = []
        for plan in plans:
            inputs[plan.index] = self.weights.codes(plan, node.inputs[plan.index], transpose=True)
            numbers += self._per_direction(plan, int((graph.shape(node.inputs[plan.index]) or (1,))[0] or 1))
        attrs = {k: v for k, v in node.attrs.items() if k != "layout"}
        outputs = tuple(node.outputs)
        graph.remove_node(node)
        graph.add_node(
            "DynamicQuantizeLSTM", [*inputs, *numbers], name=name, outputs=outputs, attrs=attrs, domain=MICROSOFT
        )

    def _per_direction(self, plan: WeightPlan, directions: int) -> list[Tensor]:
        """Scale and zero point, shape (directions, 4 * hidden) or (directions,)."""
        params = self.weights.params(plan)
        shape = (directions, -1) if params.scale.ndim else (directions,)
        scale = params.scale.reshape(shape) if params.scale.ndim else np.broadcast_to(params.scale, shape)
        zero = np.broadcast_to(params.zero_point.reshape(-1)[0], scale.shape)
        dtype = np.int8 if params.spec.qtype.signed else np.uint8
        return [
            self.weights.scale(plan, np.ascontiguousarray(scale)),
            self.weights.zeros(np.ascontiguousarray(zero).astype(dtype)),
        ]

    def decoded(self, node: Node, plans: list[WeightPlan]) -> None:
        """Let a recurrent layer read codes through what decodes them; ONNX Runtime does that once, at loading.

        Args:
            node: A GRU or RNN.
            plans: Its W and R.
        """
        for plan in plans:
            params = self.weights.params(plan)
            codes = self.weights.codes(plan, node.inputs[plan.index])
            number = self._node("Cast", [codes], f"{plan.key}_numbers", {"to": np.dtype(np.float32)})
            if not params.spec.qtype.signed:
                level = self.weights.scale(plan, params.zero_point.reshape(-1)[:1].astype(np.float32), own=True)
                number = self._node("Sub", [number, level], f"{plan.key}_centred")
            scale = self.weights.scale(plan, params.scale)
            self.graph.set_input(node, plan.index, self._node("Mul", [number, scale], f"{plan.key}_decoded"))

    def attention(self, node: Node, plan: WeightPlan, activations: Activations) -> None:
        """Use ONNX Runtime's attention whose projections multiply codes.

        Args:
            node: An Attention of the domain com.microsoft.
            plan: Its weight.
            activations: Gives the codes of its input.
        """
        graph, name = self.graph, label(node)
        params = self.weights.params(plan)
        source = activations.codes(node.inputs[0])
        weight = self.weights.codes(plan, node.inputs[1])
        scale = self.weights.scale(plan, params.scale)
        zero = self.weights.zeros(params.zero_point.astype(graph.dtype(weight)))
        inputs = [source.codes, weight, node.inputs[2], source.scale, scale]
        inputs += [optional_input(node, 3), source.zero_point, zero]
        attrs = {k: v for k, v in node.attrs.items() if k in _ATTENTION_ATTRIBUTES}
        outputs = tuple(node.outputs)
        graph.remove_node(node)
        graph.add_node("QAttention", inputs, name=name, outputs=outputs, attrs=attrs, domain=MICROSOFT)

    def _node(
        self,
        op: str,
        inputs: list[Tensor],
        name: str,
        attrs: dict[str, object] | None = None,
    ) -> Tensor:
        return self.graph.add_node(op, inputs, name=name, outputs=[name], attrs=attrs).outputs[0]
