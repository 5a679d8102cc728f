# SPDX-License-Identifier: Apache-2.0
"""A small graph builder that writes one network at any opset, for training or inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FloatArray = NDArray[np.float32]
Weights = dict[str, FloatArray]

BATCH_DIM = "N"
INPUT_NAME = "image"
OUTPUT_NAME = "logits"
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.9
LAYER_NORM_EPSILON = 1e-5

IR_VERSION_BY_OPSET = {11: 6, 13: 7, 17: 8, 21: 10}
_REDUCE_AXES_AS_INPUT_SINCE = 18
_LAYER_NORM_OP_SINCE = 17


class GraphBuilder:
    """Collects nodes and initializers of one network and assembles the model.

    The same network function runs twice: with `training=True` it creates fresh weights and
    writes training-mode normalization, with trained weights it writes the inference form.

    Attributes:
        weights: Every weight of the network by tensor name.
        trainable: Names of the weights the optimizer updates.
        running_stats: Names of the BatchNormalization statistics.
    """

    def __init__(
        self,
        opset: int,
        *,
        weights: Weights | None = None,
        training: bool = False,
        seed: int = 0,
    ) -> None:
        """Start an empty graph.

        Args:
            opset: Version of the default operator set.
            weights: Trained weights; without them new ones are drawn.
            training: Whether normalization layers take batch statistics.
            seed: Seed of the weight initialization.

        Raises:
            ValueError: If the opset is not one the builder writes.
        """
        if opset not in IR_VERSION_BY_OPSET:
            known = ", ".join(str(version) for version in IR_VERSION_BY_OPSET)
            raise ValueError(f"opset {opset} is not supported; choose one of {known}")
        self.opset = opset
        self.training = training
        self.weights: Weights = {}
        self.trainable: list[str] = []
        self.running_stats: list[str] = []
        self._given = weights
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    # --- primitives

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        name: str,
        *,
        extra_outputs: Sequence[str] = (),
        **attributes: float | list[int] | str | onnx.GraphProto,
    ) -> str:
        """Append a node called `name` and return its first output, `name/out`."""
        output = f"{name}/out"
        outputs = [output, *extra_outputs]
        node = helper.make_node(op_type, inputs, outputs, name=name)
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self._nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer that is never trained."""
        self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str, create: Callable[[], NDArray[Any]], *, trained: bool = True) -> str:
        """Add a weight, taken from the trained ones or newly created.

        Raises:
            KeyError: If trained weights were given and this one is not among them.
        """
        if self._given is None:
            value = np.asarray(create(), dtype=np.float32)
        elif name in self._given:
            value = np.asarray(self._given[name], dtype=np.float32)
        else:
            raise KeyError(f"no trained weight named {name!r}")
        self.weights[name] = value
        (self.trainable if trained else self.running_stats).append(name)
        return self.constant(name, value)

    def normal(self, shape: Sequence[int], std: float) -> NDArray[Any]:
        """Fresh numbers of a normal distribution around 0."""
        return self._rng.standard_normal(tuple(shape)) * std

    # --- convolutional layers

    def conv(
        self,
        x: str,
        name: str,
        channels: tuple[int, int],
        kernel: int,
        *,
        stride: int = 1,
        group: int = 1,
        bias: bool = False,
    ) -> str:
        """Square convolution from `channels[0]` to `channels[1]` channels.

        The padding keeps the size at stride 1, except for even kernels, which get none.
        """
        in_channels, out_channels = channels
        shape = (out_channels, in_channels // group, kernel, kernel)
        std = math.sqrt(2.0 / (shape[1] * kernel * kernel))
        inputs = [x, self.weight(f"{name}/weight", lambda: self.normal(shape, std))]
        if bias:
            inputs.append(self.weight(f"{name}/bias", lambda: np.zeros(out_channels)))
        padding = kernel // 2 if kernel % 2 else 0
        return self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            # Explicit: the gradient of an auto-padded Conv is silently wrong.
            pads=[padding] * 4,
            dilations=[1, 1],
            group=group,
        )

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        """BatchNormalization over axis 1."""
        inputs = [
            x,
            self.weight(f"{name}/gamma", lambda: np.ones(channels)),
            self.weight(f"{name}/beta", lambda: np.zeros(channels)),
            self.weight(f"{name}/running_mean", lambda: np.zeros(channels), trained=False),
            self.weight(f"{name}/running_var", lambda: np.ones(channels), trained=False),
        ]
        attributes: dict[str, float | list[int]] = {"epsilon": BN_EPSILON, "momentum": BN_MOMENTUM}
        extra: list[str] = []
        if self.training:
            attributes["training_mode"] = 1
            extra = [f"{name}/next_mean", f"{name}/next_var"]
        return self.node("BatchNormalization", inputs, name, extra_outputs=extra, **attributes)

    def relu(self, x: str, name: str) -> str:
        """Rectifier."""
        return self.node("Relu", [x], name)

    def relu6(self, x: str, name: str) -> str:
        """Rectifier clipped at 6."""
        low = self.constant(f"{name}/min", np.float32(0.0).reshape(()))
        high = self.constant(f"{name}/max", np.float32(6.0).reshape(()))
        return self.node("Clip", [x, low, high], name)

    def add(self, a: str, b: str, name: str) -> str:
        """Elementwise sum."""
        return self.node("Add", [a, b], name)

    def pooled_classifier(self, x: str, channels: int, classes: int) -> None:
        """GlobalAveragePool, Flatten and the final Gemm that produces the logits."""
        pooled = self.node("GlobalAveragePool", [x], "pool")
        flat = self.node("Flatten", [pooled], "flatten", axis=1)
        self.gemm_head(flat, channels, classes)

    def gemm_head(self, x: str, features: int, classes: int) -> None:
        """The final Gemm; its output is the output of the model."""
        std = math.sqrt(1.0 / features)
        weight = self.weight("head/weight", lambda: self.normal((classes, features), std))
        bias = self.weight("head/bias", lambda: np.zeros(classes))
        node = helper.make_node("Gemm", [x, weight, bias], [OUTPUT_NAME], name="head", transB=1)
        self._nodes.append(node)

    # --- transformer layers

    def linear(self, x: str, name: str, features: tuple[int, int]) -> str:
        """MatMul followed by a bias Add, on the last axis."""
        std = math.sqrt(1.0 / features[0])
        weight = self.weight(f"{name}/weight", lambda: self.normal(features, std))
        bias = self.weight(f"{name}/bias", lambda: np.zeros(features[1]))
        product = self.node("MatMul", [x, weight], f"{name}/matmul")
        return self.node("Add", [product, bias], f"{name}/bias_add")

    def reshape(self, x: str, name: str, shape: Sequence[int]) -> str:
        """Reshape; a 0 keeps the dimension."""
        target = self.constant(f"{name}/shape", np.asarray(shape, dtype=np.int64))
        return self.node("Reshape", [x, target], name)

    def transpose(self, x: str, name: str, perm: Sequence[int]) -> str:
        """Transpose."""
        return self.node("Transpose", [x], name, perm=list(perm))

    def reduce_mean(self, x: str, name: str, axis: int, *, keepdims: bool) -> str:
        """Mean over one axis."""
        if self.opset >= _REDUCE_AXES_AS_INPUT_SINCE:
            axes = self.constant(f"{name}/axes", np.asarray([axis], dtype=np.int64))
            return self.node("ReduceMean", [x, axes], name, keepdims=int(keepdims))
        return self.node("ReduceMean", [x], name, axes=[axis], keepdims=int(keepdims))

    def scalar(self, name: str, value: float) -> str:
        """A float32 scalar initializer."""
        return self.constant(name, np.asarray(value, dtype=np.float32))

    def layer_norm(self, x: str, name: str, features: int) -> str:
        """Layer normalization: one node where the opset has it, else its decomposition."""
        gamma = self.weight(f"{name}/gamma", lambda: np.ones(features))
        beta = self.weight(f"{name}/beta", lambda: np.zeros(features))
        if self.opset >= _LAYER_NORM_OP_SINCE and not self.training:
            return self.node("LayerNormalization", [x, gamma, beta], name, axis=-1, epsilon=LAYER_NORM_EPSILON)
        mean = self.reduce_mean(x, f"{name}/mean", -1, keepdims=True)
        centred = self.node("Sub", [x, mean], f"{name}/sub")
        two = self.scalar(f"{name}/exponent", 2.0)
        squared = self.node("Pow", [centred, two], f"{name}/pow")
        variance = self.reduce_mean(squared, f"{name}/variance", -1, keepdims=True)
        epsilon = self.scalar(f"{name}/epsilon", LAYER_NORM_EPSILON)
        stable = self.node("Add", [variance, epsilon], f"{name}/add_epsilon")
        deviation = self.node("Sqrt", [stable], f"{name}/sqrt")
        normalized = self.node("Div", [centred, deviation], f"{name}/div")
        scaled = self.node("Mul", [normalized, gamma], f"{name}/mul")
        return self.node("Add", [scaled, beta], f"{name}/add")

    def gelu(self, x: str, name: str) -> str:
        """Gelu in its exact form, x * (1 + erf(x / sqrt 2)) * 0.5."""
        root = self.scalar(f"{name}/sqrt2", math.sqrt(2.0))
        one = self.scalar(f"{name}/one", 1.0)
        half = self.scalar(f"{name}/half", 0.5)
        scaled = self.node("Div", [x, root], f"{name}/div")
        error = self.node("Erf", [scaled], f"{name}/erf")
        shifted = self.node("Add", [error, one], f"{name}/add")
        product = self.node("Mul", [x, shifted], f"{name}/mul")
        return self.node("Mul", [product, half], f"{name}/mul_half")

    def attention(self, x: str, name: str, *, width: int, heads: int) -> str:
        """Multi-head self-attention over tokens shaped [N, tokens, width]."""
        head_width = width // heads
        split = [0, -1, heads, head_width]
        axes = {"query": (0, 2, 1, 3), "key": (0, 2, 3, 1), "value": (0, 2, 1, 3)}
        parts = {}
        for part, perm in axes.items():
            y = self.linear(x, f"{name}/{part}", (width, width))
            y = self.reshape(y, f"{name}/{part}/split_heads", split)
            parts[part] = self.transpose(y, f"{name}/{part}/to_heads", perm)
        scores = self.node("MatMul", [parts["query"], parts["key"]], f"{name}/scores")
        divisor = self.scalar(f"{name}/sqrt_head_width", math.sqrt(head_width))
        scaled = self.node("Div", [scores, divisor], f"{name}/scale")
        # The last axis by its number: before opset 13 Softmax flattened what follows its axis.
        probabilities = self.node("Softmax", [scaled], f"{name}/softmax", axis=3)
        context = self.node("MatMul", [probabilities, parts["value"]], f"{name}/context")
        merged = self.transpose(context, f"{name}/from_heads", (0, 2, 1, 3))
        merged = self.reshape(merged, f"{name}/merge_heads", [0, -1, width])
        return self.linear(merged, f"{name}/project", (width, width))

    # --- result

    def build(self, name: str, input_shape: Sequence[int], classes: int) -> onnx.ModelProto:
        """Assemble and check the model.

        Args:
            name: Name of the graph.
            input_shape: Shape of one sample.
            classes: Number of logits.
        """
        image = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [BATCH_DIM, *input_shape])
        logits = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [BATCH_DIM, classes])
        initializers = list(self._initializers.values())
        graph = helper.make_graph(self._nodes, name, [image], [logits], initializers)
        model = helper.make_model(
            graph,
            producer_name="onnxq-models",
            ir_version=IR_VERSION_BY_OPSET[self.opset],
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        onnx.checker.check_model(model, full_check=True)
        return model
