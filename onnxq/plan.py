"""What is going to be quantized, and how: the result of selecting layers, before any number is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from onnxq.recipe import ActivationMethod, TrainedActivation, TrainedWeight, WeightMethod
from onnxq.spec import QuantSpec

Role = Literal["quantized", "shared", "absorbed", "float"]
"""What becomes of a node.

* ``quantized``: it computes with codes.
* ``shared``: it only moves codes around, with the scale of its input (Reshape, MaxPool, Concat).
* ``absorbed``: a Relu or Clip that the quantization of its output does by saturation.
* ``float``: it stays as it is.
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one node.

    Attributes:
        node: Its name.
        op_type: Its operator type.
        role: See `Role`.
        reason: Why it stays float, in words a user can act on; empty for the other roles.
    """

    node: str
    op_type: str
    role: Role
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ActivationPlan:
    """How one activation is quantized.

    Attributes:
        tensor: Its name.
        spec: Its type and symmetry.
        method: How its range is chosen.
        group: Name of the group of tensors that share one scale; its own name where it is alone.
        everywhere: All its readers get the codes, graph outputs and float nodes too: its producer
            gives codes. Otherwise only the nodes in `readers` do.
        readers: Node name and input index of each quantized reader.
        bounds: Values lie within these whatever the data say (the limits of an absorbed Clip).
        key: What its parameters are called: its name, or more where its readers want it differently.
        trained: How its range is learned in quantization-aware training; None for the default way.
    """

    tensor: str
    spec: QuantSpec
    method: ActivationMethod
    group: str
    everywhere: bool
    readers: tuple[tuple[str, int], ...]
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    key: str = ""
    trained: TrainedActivation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.tensor)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How one weight, a constant, is quantized.

    Attributes:
        node: Name of the node that reads it.
        index: Which input of the node.
        tensor: Its name.
        key: What its parameters are called: its name, or more where its readers want it differently.
        spec: Its type, granularity and symmetry.
        method: How its scale is chosen.
        bias: Whether a bias of the node, where it has one, gets int32 codes.
        input: Name of the activation it is multiplied with; empty where there is none (embeddings).
        input_key: What the parameters of that activation are called.
        trained: How its scale is learned in quantization-aware training; None for the default way.
    """

    node: str
    index: int
    tensor: str
    key: str
    spec: QuantSpec
    method: WeightMethod
    bias: bool = False
    input: str = ""
    input_key: str = ""
    trained: TrainedWeight | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_key", self.input_key or self.input)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Where the codes of a weight are whose blocks have scales: as a matrix of N outputs and K inputs.

    Attributes:
        codes: Name of a constant, uint8, shape (N, bytes): codes of `width` bits, rows filled up with zeros.
        scale: Name of a constant, float32, shape (N, blocks).
        zero_point: Name of a constant, uint8, shape (N, blocks), one each.
        inputs: K.
        bits: How wide the codes are.
        size: Weights that share a scale.
        symmetric: Whether all zero points are the middle code.
        by_rows: Whether the weight has the shape (N, K); otherwise it has (K, N).
    """

    codes: str
    scale: str
    zero_point: str
    inputs: int
    bits: int
    size: int
    symmetric: bool
    by_rows: bool

    @property
    def width(self) -> int:
        """Bits that a code is stored in: 2, 4 or 8."""
        return next(width for width in (2, 4, 8) if width >= self.bits)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which nodes and tensors are quantized, and how.

    Attributes:
        decisions: One per node of the main graph, in topological order.
        activations: By their keys, in topological order.
        weights: One per weight input of a quantized node, in topological order.
        absorbed: Node names of the Relus and Clips that saturation replaces.
    """

    decisions: tuple[Decision, ...] = ()
    activations: Mapping[str, ActivationPlan] = field(default_factory=lambda: MappingProxyType({}))
    weights: tuple[WeightPlan, ...] = ()
    absorbed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "activations", MappingProxyType(dict(self.activations)))

    def __bool__(self) -> bool:
        """Whether anything is quantized."""
        return bool(self.activations or self.weights) or any(d.role == "quantized" for d in self.decisions)

    def counts(self) -> dict[str, int]:
        """How many nodes have each role."""
        found = Counter(d.role for d in self.decisions)
        return {role: found[role] for role in ("quantized", "shared", "absorbed", "float")}

    def left_float(self) -> tuple[Decision, ...]:
        """The nodes that stay float, with reasons."""
        return tuple(d for d in self.decisions if d.role == "float")
