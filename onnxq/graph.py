"""The graph that passes transform: a façade over onnx-graphsurgeon.

Passes hold `gs.Node` and `gs.Tensor` objects and read them freely, but every edit goes through
`GraphModel`, because graphsurgeon's own edits, import and export lose or corrupt what a quantizer
must keep. Weights stay where they are (a file, a protobuf) until somebody asks for their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq._graph import bodies, constants, links
from onnxq._graph.assemble import assemble
from onnxq._graph.importer import OpaqueAttribute
from onnxq._graph.opset import converted
from onnxq._graph.view import Dim, GraphView, Node, Tensor, Use
from onnxq._graph.weights import LazyArray, ProtoWeights, Weights, is_stub, weights_of
from onnxq.errors import GraphError
from onnxq.spec import QType

__all__ = ["Dim", "GraphModel", "LazyArray", "Node", "OpaqueAttribute", "Tensor", "Use"]


class GraphModel(GraphView):
    """An ONNX model open for editing. Open one with `onnxq.modelio.load_model` or `from_proto`."""

    def __init__(self, proto: onnx.ModelProto, *, locate: Callable[[onnx.TensorProto], Weights] = ProtoWeights) -> None:
        """Take `proto` over without a copy and without checks: the caller must not use it any more.

        Args:
            proto: The model.
            locate: Says where the numbers of a tensor are.
        """
        super().__init__(proto, locate)

    # ---- the whole model -------------------------------------------------------------------

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, *, base_dir: str | os.PathLike[str] | None = None) -> GraphModel:
        """Build a graph from a private copy of `proto`.

        Args:
            proto: The model; it is not changed.
            base_dir: The folder its external data are in, if it has any.

        Raises:
            ModelError: If it is not a valid model, or its external data are missing or outside `base_dir`.
        """
        from onnxq.modelio import graph_from_proto

        return graph_from_proto(proto, base_dir=None if base_dir is None else Path(base_dir))

    def to_proto(self) -> onnx.ModelProto:
        """The model with all weights inside; for big models use `onnxq.modelio.save_model`.

        Raises:
            GraphError: If the graph has a cycle, or an attribute or a type cannot be written.
        """
        return assemble(self, keep=1 << 62)

    def skeleton(self, *, keep: int = 0) -> onnx.ModelProto:
        """The model without its big weights: their initializers have name, type and shape only.

        Args:
            keep: Initializers of up to this many bytes keep their numbers.
        """
        return assemble(self, keep=keep)

    def copy(self) -> GraphModel:
        """An independent graph that shares the weights, which cannot change."""
        return self._rebuilt(self.skeleton())

    def upgrade_opset(self, version: int) -> None:
        """Convert the model to a newer version of the default operator set.

        All nodes and tensors become new objects; names of tensors and named nodes are kept.

        Args:
            version: The operator set wanted; nothing happens if the model has it already.

        Raises:
            GraphError: If it is older than the model's, or the model cannot be converted; the graph
                is unchanged then.
        """
        if version != self.opset:
            other = self._rebuilt(converted(self, version))
            other.validate()
            self.__dict__.update(other.__dict__)

    def _rebuilt(self, skeleton: onnx.ModelProto) -> GraphModel:
        weights = {t.name: weights_of(t) for t in self.constants()}

        def locate(proto: onnx.TensorProto) -> Weights:
            return weights[proto.name] if is_stub(proto) and proto.name in weights else ProtoWeights(proto)

        other = GraphModel(skeleton, locate=locate)
        other.notes = list(self.notes)
        other.external_data = self.external_data
        return other

    # ---- making things ---------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """A name that no node, tensor or body has, and that will not be given again: `base` if it is free."""
        return self._names.fresh(base)

    def new_variable(self, name: str, dtype: object = None, shape: Sequence[Dim] | None = None) -> Tensor:
        """A new variable; its name gets a number if a tensor has it.

        Args:
            name: Wanted name.
            dtype: numpy or ml_dtypes type, if known.
            shape: Its shape, if known.
        """
        if name in self._tensors:
            name = self.unique_name(name)
        variable = gs.Variable(name)
        self._register(variable)
        self.set_type(variable, dtype, shape)
        return variable

    def set_type(self, tensor: Tensor, dtype: object, shape: Sequence[Dim] | None) -> None:
        """Say what is known of the type of a variable.

        Args:
            tensor: A variable.
            dtype: numpy or ml_dtypes type, or None if it is not known.
            shape: A number, a symbol or None for each dimension, or None if not even the rank is known.
        """
        tensor.dtype = None if dtype is None else np.dtype(dtype)  # type: ignore[call-overload]
        tensor.shape = None if shape is None else tuple(d if isinstance(d, str | None) else int(d) for d in shape)

    def add_constant(self, name: str, array: NDArray[Any] | LazyArray, *, qtype: QType | None = None) -> Tensor:
        """A new initializer; its name gets a number if a tensor has it.

        Args:
            name: Wanted name.
            array: The numbers, any shape; copied. A `LazyArray` is computed whenever it is read or saved.
            qtype: The integer container to store codes in; `array` may then have any integer type.

        Raises:
            GraphError: If a code does not fit into `qtype`, or ONNX has no such element type.
        """
        name = name if name and name not in self._tensors else self.unique_name(name)
        try:
            constant = gs.Constant(name, constants.weights_for(array, qtype, self._spill))
        except ValueError as err:
            raise GraphError(f"constant {name!r}: {err}") from err
        self._register(constant)
        return constant

    def make_constant(self, tensor: Tensor, array: NDArray[Any] | LazyArray | gs.Constant) -> None:
        """Turn a variable into a constant of the same name, seen by all its readers; its producer is cut off.

        Args:
            tensor: A variable that is not a graph input.
            array: The numbers, or a constant whose numbers are shared.

        Raises:
            GraphError: If `tensor` is a graph input or a constant.
        """
        if isinstance(tensor, gs.Constant) or self.is_input(tensor):
            raise GraphError(f"{tensor.name!r} is a constant or a graph input already")
        if isinstance(array, gs.Constant):
            weights = weights_of(array)
        else:
            weights = constants.weights_for(array, None, self._spill)
        for node in tuple(tensor.inputs):
            for position in [i for i, t in enumerate(node.outputs) if t is tensor]:
                links.set_output(node, position, gs.Variable.empty())
        constants.become_constant(tensor, weights)

    def derived(
        self, tensor: Tensor, function: Callable[[NDArray[Any]], NDArray[Any]], *, shape: Sequence[int], dtype: object
    ) -> LazyArray:
        """What `function` makes of the numbers a constant has now, computed whenever it is read or saved.

        Args:
            tensor: A constant; giving it other numbers later changes nothing here.
            function: Must return the same array of this shape and type each time.
            shape: Shape of the result.
            dtype: numpy or ml_dtypes type of the result.
        """
        weights = weights_of(tensor)
        return LazyArray(tuple(shape), np.dtype(dtype), lambda: function(weights.array()))  # type: ignore[call-overload]

    def rewrite_constant(self, tensor: Tensor, array: NDArray[Any] | LazyArray) -> None:
        """Give a constant other numbers, of any type and shape; its name stays and all its readers see them.

        Args:
            tensor: A constant.
            array: The numbers, as for `add_constant`.

        Raises:
            GraphError: If `tensor` is not a constant, or ONNX has no such element type.
        """
        if not isinstance(tensor, gs.Constant):
            raise GraphError(f"tensor {tensor.name!r} is not a constant")
        try:
            weights = constants.weights_for(array, None, self._spill)
        except ValueError as err:
            raise GraphError(f"constant {tensor.name!r}: {err}") from err
        self._imported.overridable.pop(tensor.name, None)  # a caller would give it numbers of the old type
        constants.become_constant(tensor, weights)

    def lift(self, node: Node) -> Tensor | None:
        """Make what a Constant node computes an initializer and remove the node; the numbers are not read.

        Returns:
            The constant, or None if the node's value has a form that is not known.
        """
        constant = constants.of_node(node)
        if constant is None:
            return None
        tensor = node.outputs[0]
        self.make_constant(tensor, constant)
        self.remove_node(node)
        return tensor

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
            attrs: Attributes; an element type may be given as numpy's.
            domain: Operator domain, None for the default one.
            dtype: Element type of the new outputs, if known.
            shape: Shape of the new outputs, if known.

        Raises:
            GraphError: If an output has a producer already, or is a constant or a graph input.
        """
        name = self.unique_name(name)
        wanted = outputs or (f"{name}_output",)
        variables = [self.new_variable(out, dtype, shape) if isinstance(out, str) else out for out in wanted]
        for variable in variables:
            self._check_free(variable, f"node {name!r} ({op})")
        reads = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
        for tensor in (*reads, *variables):
            self._register(tensor)
        node = gs.Node(op, name, dict(attrs or {}), reads, variables, domain)
        self._nodes[id(node)] = node
        self._by_name[name] = node
        self._note_captures(node)
        self._sorted = False
        return node

    def _check_free(self, variable: Tensor, who: str) -> None:
        if variable.inputs or self.is_constant(variable) or self.is_input(variable):
            maker = f"computed by {variable.inputs[0].name!r}" if variable.inputs else "a constant or a graph input"
            raise GraphError(f"{who} cannot compute {variable.name!r}: it is {maker}")

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
            GraphError: If a use does not read `old`, or a body has a tensor of its own with the name of `new`.
        """
        if old is new:
            return
        self._register(new)
        if uses is None:
            self._move_captures(old, new)
            links.move_all(old, new)
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
        if isinstance(tensor, gs.Constant) or self.is_input(tensor):
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
        """Take `node` out; what it computed is left without a producer.

        Raises:
            GraphError: If it is not in the graph.
        """
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
        other: Any = self._by_name.get(name, node)
        if other is not node:
            raise GraphError(f"two nodes would be called {name!r}")
        self._forget_name(node)
        node.name = name
        self._names.take(name)
        self._by_name[name] = node

    def _forget_name(self, node: Node) -> None:
        known: Any = self._by_name.get(node.name)
        if known is node:
            del self._by_name[node.name]

    def _move_captures(self, old: Tensor, new: Tensor) -> None:
        readers = tuple(self._readers.get(id(old), {}).values())
        for node in readers:
            if any(new.name in bodies.own_names(body) for body in bodies.bodies_of(node.attrs)):
                raise GraphError(f"node {node.name!r} ({node.op}): its body has a {new.name!r} of its own")
        for node in readers:
            for body in bodies.bodies_of(node.attrs):
                bodies.rename_outer(body, old.name, new.name)
            del self._captures[id(node)][old.name]
            self._captures[id(node)][new.name] = new
            self._forget_reader(old, node)
            self._readers.setdefault(id(new), {})[id(node)] = node

    def _forget_reader(self, tensor: Tensor, node: Node) -> None:
        readers = self._readers[id(tensor)]
        del readers[id(node)]
        if not readers:
            del self._readers[id(tensor)]

    def sweep(self) -> int:
        """Remove nodes that reach no output and constants nobody reads.

        Positional outputs of a node that stays are kept, used or not.

        Returns:
            How many nodes, constants and descriptions of tensors that do not exist were removed.
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
        loose = len(self._imported.loose)
        self._imported.loose.clear()
        return len(dead) + sum(isinstance(t, gs.Constant) for t in unused) + loose
