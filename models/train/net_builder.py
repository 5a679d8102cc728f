# SPDX-License-Identifier: Apache-2.0
"""Layers beyond those of the digits classifiers, and models with any inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from builder import IR_VERSION_BY_OPSET, GraphBuilder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_AXES_AS_INPUT_SINCE = {"Squeeze": 13, "Unsqueeze": 13, "ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18}
_GATES = {"LSTM": 4, "GRU": 3}
_STATES = {"LSTM": "hc", "GRU": "h"}


@dataclass(frozen=True)
class Port:
    """An input or an output of a model.

    Attributes:
        shape: Dimensions; a string is the name of a free one.
        element: Type of its elements, of `onnx.TensorProto`.
    """

    shape: tuple[int | str, ...]
    element: int = TensorProto.FLOAT


class NetBuilder(GraphBuilder):
    """A graph builder with convolutions of any rank, recurrent layers and free interfaces.

    Attributes:
        as_exported: Write constants as nodes without a name, and linear layers as MatMul of a transposed weight and
            Add, as some exporters do.
    """

    as_exported = False

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant: an initializer, or a node."""
        if not self.as_exported or name in self.weights:
            return super().constant(name, value)
        self._nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def conv_nd(
        self,
        x: str,
        name: str,
        channels: tuple[int, int],
        kernel: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        group: int = 1,
        bias: bool = True,
    ) -> str:
        """Convolution with one kernel size for each spatial axis; odd kernels keep the size at stride 1."""
        shape = (channels[1], channels[0] // group, *kernel)
        std = math.sqrt(2.0 / math.prod(shape[1:]))
        inputs = [x, self.weight(f"{name}/weight", lambda: self.normal(shape, std))]
        if bias:
            inputs.append(self.weight(f"{name}/bias", lambda: np.zeros(channels[1])))
        return self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=list(kernel),
            strides=[stride] * len(kernel),
            pads=[dilation * (k // 2) if k % 2 else 0 for k in kernel] * 2,
            dilations=[dilation] * len(kernel),
            group=group,
        )

    def conv_transpose(self, x: str, name: str, channels: tuple[int, int], factor: int) -> str:
        """Transposed convolution that makes a picture `factor` times as large, without overlap."""
        shape = (*channels, factor, factor)
        std = math.sqrt(2.0 / channels[0])
        weight = self.weight(f"{name}/weight", lambda: self.normal(shape, std))
        bias = self.weight(f"{name}/bias", lambda: np.zeros(channels[1]))
        size = [factor, factor]
        return self.node("ConvTranspose", [x, weight, bias], name, kernel_shape=size, strides=size)

    def dense(self, x: str, name: str, features: tuple[int, int]) -> str:
        """Gemm of [N, features[0]] with a transposed weight."""
        std = math.sqrt(1.0 / features[0])
        weight = self.weight(f"{name}/weight", lambda: self.normal((features[1], features[0]), std))
        bias = self.weight(f"{name}/bias", lambda: np.zeros(features[1]))
        if not self.as_exported:
            return self.node("Gemm", [x, weight, bias], name, transB=1)
        turned = self.transpose(weight, f"{name}/transpose", (1, 0))
        return self.node("Add", [self.node("MatMul", [x, turned], f"{name}/matmul"), bias], name)

    def recurrent(
        self,
        x: str,
        name: str,
        op_type: str,
        features: tuple[int, int],
        *,
        bidirectional: bool = False,
        reset_after: bool = False,
    ) -> str:
        """LSTM or GRU over [time, N, features[0]].

        Args:
            x: The sequence.
            name: Name of the layer.
            op_type: LSTM or GRU.
            features: Size of the input and of the state.
            bidirectional: Whether a second direction reads the sequence backwards.
            reset_after: Whether the reset gate of a GRU comes after the recurrent product.

        Returns:
            All states, [time, directions, N, features[1]]; the last ones are `name/h`.
        """
        directions, gates, hidden = 2 if bidirectional else 1, _GATES[op_type], features[1]

        def uniform(*shape: int) -> NDArray[np.float64]:
            return self._rng.uniform(-1, 1, shape) / math.sqrt(hidden)

        inputs = [
            x,
            self.weight(f"{name}/weight", lambda: uniform(directions, gates * hidden, features[0])),
            self.weight(f"{name}/recurrence", lambda: uniform(directions, gates * hidden, hidden)),
            self.weight(f"{name}/bias", lambda: uniform(directions, 2 * gates * hidden)),
        ]
        attributes: dict[str, float | list[int] | str] = {"hidden_size": hidden}
        if bidirectional:
            attributes["direction"] = "bidirectional"
        if reset_after:
            attributes["linear_before_reset"] = 1
        states = [f"{name}/{state}" for state in _STATES[op_type]]
        return self.node(op_type, inputs, name, extra_outputs=states, **attributes)

    def with_axes(self, op_type: str, x: str, name: str, axes: Sequence[int], **attributes: int) -> str:
        """Squeeze, Unsqueeze or a reduction, with axes where the opset has them."""
        if self.opset >= _AXES_AS_INPUT_SINCE[op_type]:
            given = self.constant(f"{name}/axes", np.asarray(axes, dtype=np.int64))
            return self.node(op_type, [x, given], name, **attributes)
        return self.node(op_type, [x], name, axes=list(axes), **attributes)

    def indexes(self, name: str, values: Sequence[int]) -> str:
        """An int64 initializer."""
        return self.constant(name, np.asarray(values, dtype=np.int64))

    def slice(self, x: str, name: str, axis: int, start: int, end: int) -> str:
        """Part of one axis, with constant ends."""
        ends = [self.indexes(f"{name}/{part}", [v]) for part, v in (("start", start), ("end", end), ("axis", axis))]
        return self.node("Slice", [x, *ends], name)

    def assemble(
        self,
        name: str,
        inputs: Mapping[str, Port],
        outputs: Mapping[str, tuple[str, Port]],
    ) -> onnx.ModelProto:
        """The model, checked.

        Args:
            name: Name of the graph.
            inputs: Inputs by name.
            outputs: By the name an output gets: the tensor it is, and its type and shape.
        """
        renamed = {tensor: wanted for wanted, (tensor, _) in outputs.items()}
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        for node in nodes:
            node.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
        read = [helper.make_tensor_value_info(key, port.element, port.shape) for key, port in inputs.items()]
        given = [helper.make_tensor_value_info(key, port.element, port.shape) for key, (_, port) in outputs.items()]
        model = helper.make_model(
            helper.make_graph(nodes, name, read, given, list(self._initializers.values())),
            producer_name="onnxq-models",
            ir_version=IR_VERSION_BY_OPSET[self.opset],
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def fixed(self) -> list[str]:
        """Names of the float constants that are not trained."""
        learned = {*self.trainable, *self.running_stats}
        found = [t for t in self._initializers.values() if t.data_type == TensorProto.FLOAT and t.name not in learned]
        return [tensor.name for tensor in found if numpy_helper.to_array(tensor).size > 1]
