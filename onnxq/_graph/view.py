"""What can be asked of a graph; `onnxq.graph.GraphModel` adds the edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq._graph import bodies, dtypes, links
from onnxq._graph.importer import import_graph
from onnxq._graph.order import topological
from onnxq._graph.weights import Spill, Weights, weights_of
from onnxq.errors import GraphError, nearest

Dim: TypeAlias = int | str | None
Node: TypeAlias = Any
"""A `gs.Node` (graphsurgeon has no types)."""
Tensor: TypeAlias = Any
"""A `gs.Variable` or `gs.Constant`."""


class Use(NamedTuple):
    """One edge: input number `index` of `node`."""

    node: Node
    index: int  # type: ignore[assignment] # hides tuple.index, which nobody needs here


class GraphView:
    """The main graph of a model, read-only; bodies of If, Loop and Scan are carried along unread.

    Attributes:
        metadata: The model's `metadata_props`.
        notes: What loading changed or cannot represent, a sentence each.
        external_data: Whether the model came with external data files.
    """

    def __init__(self, proto: onnx.ModelProto, locate: Callable[[onnx.TensorProto], Weights]) -> None:
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self.notes: list[str] = []
        self.external_data = False
        self._source = proto
        self._imported = import_graph(proto.graph, locate)
        self._tensors: dict[str, Tensor] = self._imported.tensors
        self._inputs: tuple[Tensor, ...] = tuple(self._imported.inputs)
        self._outputs: tuple[Tensor, ...] = tuple(self._imported.outputs)
        self._input_ids = frozenset(map(id, self._inputs))
        self._output_ids = frozenset(map(id, self._outputs))
        self._nodes: dict[int, Node] = {id(node): node for node in self._imported.nodes}
        self._by_name: dict[str, Node] = {}
        self._captures: dict[int, dict[str, Tensor]] = {}
        self._readers: dict[int, dict[int, Node]] = {}
        self._domains: dict[str, int] = {entry.domain: entry.version for entry in proto.opset_import}
        self._spill = Spill()
        self._names = links.Names(self._tensors)
        self._sorted = False
        self._nodes_named = False
        for node in self._imported.nodes:
            self._names.take(node.name)
            if node.name:
                self._by_name.setdefault(node.name, node)
            self._note_captures(node)
        if self._imported.overridable:
            names = ", ".join(sorted(self._imported.overridable)[:5])
            self.notes.append(f"initializers that a caller may override are taken as constants: {names}")

    # ---- the model -------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self._domains.get("", self._domains.get("ai.onnx", 1))

    @property
    def ir_version(self) -> int:
        """The source's IR version, or the first one that has all element types in use."""
        types = {weights_of(t).onnx_type for t in self.constants()}
        return max([self._source.ir_version, *map(dtypes.min_ir_version, types)])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Graph inputs that must be fed, in order; initializers are never among them."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Graph outputs, in order."""
        return self._outputs

    def constants(self) -> tuple[Tensor, ...]:
        """All constants, read by anybody or not."""
        return tuple(tensor for tensor in self._tensors.values() if isinstance(tensor, gs.Constant))

    # ---- nodes -----------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants together; nothing is read for it."""
        return sum(weights_of(t).nbytes for t in self.constants())

    def nodes(self, *op_types: str) -> tuple[Node, ...]:
        """A snapshot of the nodes of the main graph in topological order.

        Args:
            op_types: Only these. A plain name of a standard operator matches that operator only and
                not a custom one of the same name; ``"domain::Op"`` names an operator of a domain.

        Raises:
            GraphError: If the graph has a cycle.
        """
        self._ensure_sorted()
        if not op_types:
            return tuple(self._nodes.values())
        wanted = frozenset(op_types)
        return tuple(node for node in self._nodes.values() if links.matches(node, wanted))

    def has_node(self, name: str) -> bool:
        """Whether there is a node called `name`."""
        return name in self._by_name

    def node(self, name: str) -> Node:
        """The node called `name`.

        Raises:
            GraphError: If there is none; the message names similar ones.
        """
        node = self._by_name.get(name)
        if node is None:
            raise GraphError(f"the graph has no node {name!r}{nearest(name, self._by_name)}")
        return node

    # ---- tensors ---------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`.

        Raises:
            GraphError: If there is none; the message names similar ones.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise GraphError(f"the graph has no tensor {name!r}{nearest(name, self._tensors)}")
        return tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the main graph by name: those that are in use, and all constants."""
        return {name: tensor for name, tensor in self._tensors.items() if self._is_live(tensor)}

    def producer(self, tensor: Tensor) -> Any:  # noqa: ANN401 - a node or None; gs is untyped
        """The node that computes `tensor`; None for graph inputs and constants."""
        return tensor.inputs[0] if tensor.inputs else None

    def consumers(self, tensor: Tensor) -> tuple[Use, ...]:
        """Every input of a node that reads `tensor`; ``Mul(x, x)`` gives two. Bodies do not count."""
        return tuple(Use(node, i) for node in links.distinct(tensor.outputs) for i in links.positions(node, tensor))

    def read_by_subgraph(self, tensor: Tensor) -> bool:
        """Whether a body of an If, Loop or Scan reads `tensor` by its name."""
        return id(tensor) in self._readers

    def is_output(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a graph output."""
        return id(tensor) in self._output_ids

    def is_input(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a graph input that must be fed."""
        return id(tensor) in self._input_ids

    def is_private(self, tensor: Tensor) -> bool:
        """Whether exactly one input of one node reads `tensor`, and nobody else can see it."""
        return len(tensor.outputs) == 1 and not self.is_output(tensor) and not self.read_by_subgraph(tensor)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether the numbers of `tensor` are known: it is an initializer."""
        return isinstance(tensor, gs.Constant)

    def value(self, tensor: Tensor) -> NDArray[Any]:
        """The numbers of a constant, read-only; a view or a memmap, so do not keep big ones.

        Raises:
            GraphError: If `tensor` is not a constant.
            ModelError: If the file they are in has gone.
        """
        if not isinstance(tensor, gs.Constant):
            raise GraphError(f"tensor {tensor.name!r} is not a constant: its values are computed when the model runs")
        return weights_of(tensor).array()

    def shape(self, tensor: Tensor) -> tuple[Dim, ...] | None:
        """Its shape: a number, a symbol or None for each dimension; None if not even the rank is known."""
        if isinstance(tensor, gs.Constant):
            return weights_of(tensor).shape
        if tensor.shape is None:
            return None
        return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in tensor.shape)

    def rank(self, tensor: Tensor) -> int | None:
        """How many dimensions it has, if known."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dtype(self, tensor: Tensor) -> np.dtype[Any] | None:
        """Its element type as numpy or ml_dtypes has it; None if not known or not a tensor."""
        if isinstance(tensor, gs.Constant):
            return weights_of(tensor).dtype
        if isinstance(tensor.dtype, int):
            return dtypes.to_numpy(tensor.dtype)
        return None if tensor.dtype is None else np.dtype(tensor.dtype)

    def is_float32(self, tensor: Tensor) -> bool:
        """Whether its element type is known to be float32."""
        return self.dtype(tensor) == np.float32

    def is_tensor(self, tensor: Tensor) -> bool:
        """Whether it is a plain tensor: not a sequence, a map, an optional or a sparse one."""
        return isinstance(tensor, gs.Constant) or tensor.type == "tensor_type"

    def _is_live(self, tensor: Tensor) -> bool:
        if tensor.inputs or tensor.outputs or isinstance(tensor, gs.Constant):
            return True
        return id(tensor) in self._readers or id(tensor) in self._output_ids or id(tensor) in self._input_ids

    # ---- bodies ----------------------------------------------------------------------------

    def _note_captures(self, node: Node) -> None:
        captured: dict[str, Tensor] = {}
        for body in bodies.bodies_of(node.attrs):
            self._names.take_all(bodies.all_names(body))
            for name in sorted(bodies.outer_names(body)):
                tensor = self._tensors.get(name)
                if tensor is None:
                    tensor = self._tensors[name] = gs.Variable(name)
                captured[name] = tensor
                self._readers.setdefault(id(tensor), {})[id(node)] = node
        if captured:
            self._captures[id(node)] = captured

    # ---- order and health ------------------------------------------------------------------

    def _ensure_sorted(self) -> None:
        if not self._sorted:
            self.sort()

    def sort(self) -> None:
        """Bring the nodes into topological order; an order that is right already is kept.

        Raises:
            GraphError: If the graph has a cycle.
        """
        ordered = topological(list(self._nodes.values()), self._producers)
        self._nodes = {id(node): node for node in ordered}
        self._sorted = True

    def _producers(self, node: Node) -> list[Node]:
        captured = self._captures.get(id(node))
        reads: Iterable[Tensor] = node.inputs if captured is None else (*node.inputs, *captured.values())
        return [tensor.inputs[0] for tensor in reads if tensor.inputs]

    def validate(self) -> None:
        """Check what every pass must leave intact; linear, and cheap enough to call after each.

        Raises:
            GraphError: If two tensors share a name, two nodes do (once all names were unique), a
                tensor has two producers or none, a graph output is missing or there is a cycle.
        """
        self._ensure_sorted()
        links.check_edges(self._nodes.values(), self._tensors, self._input_ids, self._outputs, self._captures)
        self._check_names(must_differ=self._nodes_named)

    def check_names(self) -> None:
        """Check that every node has a name of its own; `validate` does from now on.

        Raises:
            GraphError: If one has none, or that of another.
        """
        self._check_names(must_differ=True)

    def _check_names(self, *, must_differ: bool) -> None:
        self._by_name = links.check_names(self._nodes.values(), must_differ=must_differ)
        self._nodes_named = len(self._by_name) == len(self._nodes)
