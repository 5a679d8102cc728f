"""The graph that passes transform: a façade over onnx-graphsurgeon.

Passes hold `gs.Node` and `gs.Tensor` objects and read them freely, but every edit goes through
`GraphModel`, because graphsurgeon's own edits, import and export lose or corrupt what a quantizer
must keep. Weights stay where they are (a file, a protobuf) until somebody asks for their numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq._graph import bodies, dtypes, links
from onnxq._graph.exporter import export_info, export_node, weights_of
from onnxq._graph.importer import OpaqueAttribute, import_graph
from onnxq._graph.order import topological
from onnxq._graph.weights import LazyArray, LazyWeights, ProtoWeights, SparseWeights, Spill, Weights
from onnxq.errors import GraphError, nearest
from onnxq.spec import QType

__all__ = ["GraphModel", "LazyArray", "OpaqueAttribute", "Use"]

logger = logging.getLogger("onnxq")

Dim = int | str | None
Node: TypeAlias = Any
"""A `gs.Node` (graphsurgeon has no types)."""
Tensor: TypeAlias = Any
"""A `gs.Variable` or `gs.Constant`."""


class Use(NamedTuple):
    """One edge: input number `index` of `node`."""

    node: Node
    index: int  # type: ignore[assignment] # hides tuple.index, which nobody needs here


class GraphModel:
    """An ONNX model open for editing; the main graph only, bodies of If, Loop and Scan are carried along.

    Attributes:
        metadata: The model's `metadata_props`.
        notes: What loading changed or cannot represent, a sentence each.
    """

    def __init__(self, proto: onnx.ModelProto, *, locate: Callable[[onnx.TensorProto], Weights] = ProtoWeights) -> None:
        """Take `proto` over: the caller must not use it any more. See `from_proto`."""
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self.notes: list[str] = []
        self._source = proto
        self._imported = import_graph(proto.graph, locate)
        self._tensors: dict[str, Tensor] = self._imported.tensors
        self._inputs: list[Tensor] = self._imported.inputs
        self._outputs: list[Tensor] = self._imported.outputs
        self._input_ids = frozenset(id(t) for t in self._inputs)
        self._output_ids = frozenset(id(t) for t in self._outputs)
        self._nodes: dict[int, Node] = {id(node): node for node in self._imported.nodes}
        self._by_name: dict[str, Node] = {}
        self._captures: dict[int, dict[str, Tensor]] = {}
        self._readers: dict[int, dict[int, Node]] = {}
        self._domains = {entry.domain: entry.version for entry in proto.opset_import}
        self._ir_version = proto.ir_version
        self._spill = Spill()
        self._names = links.Names(self._tensors)
        self._sorted = False
        for node in self._imported.nodes:
            self._names.take(node.name)
            self._by_name.setdefault(node.name, node)
            self._note_captures(node)

    # ---- the whole model -------------------------------------------------------------------

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, *, base_dir: Path | None = None) -> GraphModel:
        """Build a graph from a private copy of `proto`.

        Args:
            proto: The model; it is not changed.
            base_dir: The folder its external data are in, if it has any.

        Raises:
            ModelError: If external data are missing or outside `base_dir`.
            GraphError: If the model uses something onnxq cannot carry.
        """
        from onnxq.modelio import graph_from_proto

        return graph_from_proto(proto, base_dir=base_dir)

    def to_proto(self) -> onnx.ModelProto:
        """The model with all weights inside.

        Raises:
            GraphError: If an attribute or a type cannot be written.
        """
        proto = self.skeleton()
        proto.graph.ClearField("initializer")
        for tensor in self._initializers():
            proto.graph.initializer.append(weights_of(tensor).proto(tensor.name))
        return proto

    def skeleton(self, *, keep: int = 0) -> onnx.ModelProto:
        """The model without its big weights: their initializers have name, type and shape only.

        Args:
            keep: Initializers of up to this many bytes keep their numbers.
        """
        self._ensure_sorted()
        source = self._source
        proto = onnx.ModelProto()
        for descriptor, value in source.ListFields():
            if descriptor.name in ("graph", "metadata_props", "opset_import", "functions"):
                continue
            if isinstance(value, int | str):
                setattr(proto, descriptor.name, value)
            else:
                getattr(proto, descriptor.name).extend(value)
        proto.ir_version = self.ir_version
        used = {node.domain or "" for node in self._nodes.values()}
        for domain in sorted(used - self._domains.keys()):
            self._domains[domain] = 1
        known = {entry.domain: entry for entry in source.opset_import}
        for domain, version in self._domains.items():
            entry = proto.opset_import.add()
            entry.CopyFrom(known.get(domain) or onnx.OperatorSetIdProto(domain=domain))
            entry.version = version
        proto.metadata_props.extend(
            onnx.StringStringEntryProto(key=key, value=value) for key, value in self.metadata.items()
        )
        self._fill_graph(proto.graph, keep)
        return proto

    def _fill_graph(self, graph: onnx.GraphProto, keep: int) -> None:
        source = self._source.graph
        graph.name = source.name
        if source.HasField("doc_string"):
            graph.doc_string = source.doc_string
        graph.metadata_props.extend(source.metadata_props)
        graph.quantization_annotation.extend(
            note for note in source.quantization_annotation if note.tensor_name in self._tensors
        )
        graph.node.extend(export_node(node) for node in self._nodes.values())
        graph.input.extend(self._input_infos())
        graph.output.extend(info for t in self._outputs if (info := export_info(t, "output")) is not None)
        for tensor in self._initializers():
            weights = weights_of(tensor)
            small = weights.nbytes <= keep or weights.onnx_type == onnx.TensorProto.STRING
            graph.initializer.append(weights.proto(tensor.name) if small else weights.stub(tensor.name))
        for tensor in self._sparse_initializers():
            sparse = graph.sparse_initializer.add()
            sparse.CopyFrom(tensor._values.source)
            sparse.values.name = tensor.name
        ends = self._input_ids | self._output_ids
        for tensor in self._tensors.values():
            if id(tensor) not in ends and self._is_live(tensor) and (info := export_info(tensor, "value")) is not None:
                graph.value_info.append(info)
        graph.value_info.extend(info for info in self._imported.loose if info.name not in self._tensors)

    def _input_infos(self) -> list[onnx.ValueInfoProto]:
        inputs: dict[str, onnx.ValueInfoProto | None] = {t.name: export_info(t, "input") for t in self._inputs}
        constants = {t.name for t in self._initializers()}
        inputs.update((name, info) for name, info in self._imported.overridable.items() if name in constants)
        if self._ir_version < 4:
            for t in self._initializers():
                inputs.setdefault(t.name, export_info(t, "input"))
        order = [name for name in self._imported.input_order if name in inputs]
        known = set(order)
        names = order + [name for name in inputs if name not in known]
        return [info for info in map(inputs.__getitem__, names) if info is not None]

    def _initializers(self) -> list[Tensor]:
        constants = [t for t in self._tensors.values() if isinstance(t, gs.Constant)]
        return [t for t in constants if not isinstance(t._values, SparseWeights)]

    def _sparse_initializers(self) -> list[Tensor]:
        constants = [t for t in self._tensors.values() if isinstance(t, gs.Constant)]
        return [t for t in constants if isinstance(t._values, SparseWeights)]

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self._domains.get("", self._domains.get("ai.onnx", 1)))

    @property
    def ir_version(self) -> int:
        """The source's IR version, or the first one that has all element types in use."""
        types: set[int] = {weights_of(t).onnx_type for t in self._tensors.values() if isinstance(t, gs.Constant)}
        return max([int(self._ir_version), *(dtypes.min_ir_version(t) for t in types)])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Graph inputs that must be fed, in order; initializers are never among them."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Graph outputs, in order."""
        return tuple(self._outputs)

    # ---- looking things up -----------------------------------------------------------------

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
        return self._find(name) is not None

    def node(self, name: str) -> Node:
        """The node called `name`.

        Raises:
            GraphError: If there is none; the message names similar ones.
        """
        node = self._find(name)
        if node is None:
            hint = nearest(name, (n.name for n in self._nodes.values() if n.name))
            raise GraphError(f"the graph has no node {name!r}{hint}")
        return node

    def _find(self, name: str) -> Any:  # noqa: ANN401 - a node or None; gs is untyped
        node = self._by_name.get(name)
        if node is None or node.name != name:
            self._by_name = {}
            for other in self._nodes.values():
                self._by_name.setdefault(other.name, other)
            node = self._by_name.get(name)
        return node

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`.

        Raises:
            GraphError: If there is none; the message names similar ones.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise GraphError(f"the graph has no tensor {name!r}{nearest(name, self._tensors)}") from None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors in use in the main graph by name."""
        return {name: t for name, t in self._tensors.items() if self._is_live(t)}

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
            return tuple(int(size) for size in weights_of(tensor).shape)
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

    def _is_live(self, tensor: Tensor) -> bool:
        if tensor.inputs or tensor.outputs or id(tensor) in self._readers or isinstance(tensor, gs.Constant):
            return True
        return id(tensor) in self._output_ids or id(tensor) in self._input_ids

    # ---- making things ---------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """A name that no node, tensor or body has, and that will not be given again: `base` if it is free."""
        return self._names.fresh(base)

    def new_variable(self, name: str, dtype: object = None, shape: Sequence[Dim] | None = None) -> Tensor:
        """A new variable; its name gets a number if it is taken.

        Args:
            name: Wanted name.
            dtype: numpy or ml_dtypes type, if known.
            shape: Its shape, if known.
        """
        if name in self._tensors:
            name = self.unique_name(name)
        numpy_dtype = None if dtype is None else np.dtype(dtype)  # type: ignore[call-overload]
        variable = gs.Variable(name, numpy_dtype, None if shape is None else tuple(shape))
        self._register(variable)
        return variable

    def add_constant(self, name: str, array: NDArray[Any] | LazyArray, *, qtype: QType | None = None) -> Tensor:
        """A new initializer; its name gets a number if it is taken.

        Args:
            name: Wanted name.
            array: The numbers, any shape; copied. A `LazyArray` is computed when it is read or saved.
            qtype: The integer container to store codes in; `array` may then have any integer type.

        Raises:
            GraphError: If a code does not fit into `qtype`, or ONNX has no such element type.
        """
        if name in self._tensors or not name:
            name = self.unique_name(name)
        try:
            weights = self._make_weights(array, qtype)
        except ValueError as err:
            raise GraphError(f"constant {name!r}: {err}") from err
        constant = gs.Constant(name, weights)
        self._register(constant)
        return constant

    def _make_weights(self, array: NDArray[Any] | LazyArray, qtype: QType | None) -> Weights:
        if isinstance(array, LazyArray):
            return LazyWeights(array if qtype is None else links.lazy_codes(array, qtype))
        array = np.asarray(array)
        return self._spill.keep(array if qtype is None else links.as_codes(array, qtype))

    def add_node(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        *,
        name: str,
        outputs: Sequence[str | Tensor] = (),
        attrs: Mapping[str, object] | None = None,
        domain: str | None = None,
        dtype: object = None,
        shape: Sequence[Dim] | None = None,
    ) -> Node:
        """A new node; `sort` will put it where it belongs.

        Args:
            op: Operator type.
            inputs: What it reads; None for an optional input left out.
            name: Wanted name; gets a number if it is taken.
            outputs: Variables without a producer, or names for new ones; by default one new variable.
            attrs: Attributes.
            domain: Operator domain, None for the default one.
            dtype: Element type of the new outputs, if known.
            shape: Shape of the new outputs, if known.

        Raises:
            GraphError: If an output is computed by another node already.
        """
        name = self.unique_name(name)
        variables = [
            self.new_variable(out, dtype, shape) if isinstance(out, str) else out
            for out in (outputs or (f"{name}_output",))
        ]
        for variable in variables:
            if variable.inputs:
                maker = variable.inputs[0].name
                raise GraphError(f"node {name!r} ({op}): {variable.name!r} is computed by {maker!r} already")
        reads = [gs.Variable.empty() if t is None else t for t in inputs]
        for tensor in (*reads, *variables):
            self._register(tensor)
        node = gs.Node(op, name, dict(attrs or {}), reads, variables, domain)
        self._nodes[id(node)] = node
        self._by_name[name] = node
        self._note_captures(node)
        self._sorted = False
        return node

    def _register(self, tensor: Tensor) -> None:
        if not tensor.name:
            return
        known: Any = self._tensors.setdefault(tensor.name, tensor)
        if known is not tensor:
            raise GraphError(f"two tensors are called {tensor.name!r}; use unique_name() for new ones")
        self._names.take(tensor.name)

    # ---- rewiring --------------------------------------------------------------------------

    def set_input(self, node: Node, index: int, tensor: Tensor | None) -> None:
        """Let input `index` of `node` read `tensor`; missing inputs before it become empty ones.

        Args:
            node: A node of this graph.
            index: Which input; may be past the last one.
            tensor: What to read; None leaves the optional input out.
        """
        tensor = gs.Variable.empty() if tensor is None else tensor
        self._register(tensor)
        links.set_input(node, index, tensor)
        self._sorted = False

    def replace_uses(self, old: Tensor, new: Tensor, uses: Iterable[Use] | None = None) -> None:
        """Let readers of `old` read `new`. Graph outputs stay as they are.

        Args:
            old: What they read now.
            new: What they shall read.
            uses: Which inputs of which nodes; by default all, and bodies that read `old` too.
                Take them with `consumers` before adding nodes that must go on reading `old`.

        Raises:
            GraphError: If a body has a tensor of its own that is called as `new`.
        """
        if old is new:
            return
        self._register(new)
        if uses is None:
            links.move_all(old, new)
            self._move_captures(old, new)
        else:
            links.move_some(old, new, ((use.node, use.index) for use in uses))
        self._sorted = False

    def replace_output(self, node: Node, index: int, tensor: Tensor) -> None:
        """Let output `index` of `node` be `tensor`, keeping its name and readers.

        A node that computes `tensor` now gets a fresh variable instead; the readers of the variable
        that `node` computed until now are left without a producer.

        Raises:
            GraphError: If `tensor` is a constant or a graph input.
        """
        if isinstance(tensor, gs.Constant) or id(tensor) in self._input_ids:
            raise GraphError(f"node {node.name!r} cannot compute {tensor.name!r}: it is a constant or a graph input")
        if node.outputs[index] is tensor:
            return
        self._register(tensor)
        for other in tuple(tensor.inputs):
            fresh = self.new_variable(f"{tensor.name}_unused", tensor.dtype, tensor.shape)
            for position in [i for i, t in enumerate(other.outputs) if t is tensor]:
                links.set_output(other, position, fresh)
        links.set_output(node, index, tensor)
        self._sorted = False

    def remove_node(self, node: Node) -> None:
        """Take `node` out; what it computed is left without a producer."""
        if self._nodes.pop(id(node), None) is None:
            raise GraphError(f"node {node.name!r} ({node.op}) is not in the graph")
        self._forget_name(node)
        links.unlink(node)
        for tensor in self._captures.pop(id(node), {}).values():
            self._forget_reader(tensor, node)

    def rename_node(self, node: Node, name: str) -> None:
        """Give `node` another name.

        Raises:
            GraphError: If another node has that name.
        """
        other = self._find(name)
        if other is not None and other is not node:
            raise GraphError(f"two nodes would be called {name!r}")
        self._forget_name(node)
        node.name = name
        self._names.take(name)
        self._by_name[name] = node

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

    def _move_captures(self, old: Tensor, new: Tensor) -> None:
        for node in tuple(self._readers.get(id(old), {}).values()):
            for body in bodies.bodies_of(node.attrs):
                if new.name in bodies.own_names(body):
                    raise GraphError(f"node {node.name!r} ({node.op}): its body has a {new.name!r} of its own")
                bodies.rename_outer(body, old.name, new.name)
            del self._captures[id(node)][old.name]
            self._captures[id(node)][new.name] = new
            self._forget_reader(old, node)
            self._readers.setdefault(id(new), {})[id(node)] = node

    def _forget_name(self, node: Node) -> None:
        known: Any = self._by_name.get(node.name)
        if known is node:
            del self._by_name[node.name]

    def _forget_reader(self, tensor: Tensor, node: Node) -> None:
        readers = self._readers[id(tensor)]
        del readers[id(node)]
        if not readers:
            del self._readers[id(tensor)]

    # ---- order and health ------------------------------------------------------------------

    def _reads(self, node: Node) -> Iterable[Tensor]:
        captured = self._captures.get(id(node))
        return node.inputs if captured is None else (*node.inputs, *captured.values())

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
        return [tensor.inputs[0] for tensor in self._reads(node) if tensor.inputs]

    def sweep(self) -> int:
        """Remove nodes that reach no output and constants nobody reads.

        Positional outputs of a node that stays are kept, used or not.

        Returns:
            How many nodes and constants were removed.
        """
        alive: set[int] = set()
        stack = [t.inputs[0] for t in self._outputs if t.inputs]
        while stack:
            node = stack.pop()
            if id(node) not in alive:
                alive.add(id(node))
                stack.extend(self._producers(node))
        dead = [node for node in self._nodes.values() if id(node) not in alive]
        for node in dead:
            self.remove_node(node)
        kept = self._input_ids | self._output_ids | self._readers.keys()
        unused = [t for t in self._tensors.values() if not (t.inputs or t.outputs or id(t) in kept)]
        for tensor in unused:
            del self._tensors[tensor.name]
        return len(dead) + sum(isinstance(t, gs.Constant) for t in unused)

    def validate(self) -> None:
        """Check what every pass must leave intact; linear, and cheap enough to call after each.

        Raises:
            GraphError: If two tensors or nodes share a name, a tensor has two producers or none, a
                graph output is missing or there is a cycle.
        """
        self._ensure_sorted()
        links.check(self._nodes.values(), self._tensors, self._inputs, self._outputs, self._captures)
