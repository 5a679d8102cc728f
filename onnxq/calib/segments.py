"""Runs a model piece by piece over a few samples, keeping only the tensors that are still needed.

Every node runs once for each sample, however many pieces there are: this is what makes corrections
layer by layer as cheap as a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray

from onnxq.calib.feeds import Feed
from onnxq.runtime import Session, make_session

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[Any]


class SegmentRunner:
    """Advances through a model from one chosen tensor to the next.

    Args:
        model: The model; of its initializers only the names are looked at.
        weight: Returns an initializer by name, with its numbers.
        feeds: The samples, in batches.
        stops: The tensors to stop at, in topological order.
        workers: How many batches are run at the same time.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        weight: Callable[[str], onnx.TensorProto],
        feeds: Sequence[Feed],
        stops: Sequence[str],
        workers: int = 1,
    ) -> None:
        self._model = model
        self._weight = weight
        self._pool = ThreadPoolExecutor(workers)
        self._constants = {t.name for t in model.graph.initializer}
        self._pieces = _cut(_needed(list(model.graph.node), set(stops)), list(stops))
        self._last_use = _last_uses(self._pieces)
        self._live: list[dict[str, Array]] = [dict(feed) for feed in feeds]
        self._position = 0

    def advance(self) -> tuple[str, list[Array]]:
        """Run up to the next stop.

        Returns:
            The name of the tensor, and its value for each batch. The arrays may be changed in place:
            what follows is computed from them.

        Raises:
            IndexError: If there is no further stop.
            DataError: If ONNX Runtime fails.
        """
        stop, nodes = self._pieces[self._position]
        made = {name for node in nodes for name in node.output if name}
        kept = [n for n in dict.fromkeys(o for node in nodes for o in node.output) if n and self._is_live(n)]
        wanted = list(dict.fromkeys([*kept, stop])) if stop in made else kept
        reads = {name for node in nodes for name in read_names(node)} - made
        if nodes:
            self._run(nodes, reads, wanted)
        for store in self._live:
            for name in [n for n in store if self._last_use.get(n, -1) <= self._position and n != stop]:
                del store[name]
        values = [store[stop] for store in self._live]
        self._position += 1
        return stop, values

    def _is_live(self, name: str) -> bool:
        return self._last_use.get(name, -1) > self._position

    def _run(self, nodes: list[onnx.NodeProto], reads: set[str], wanted: list[str]) -> None:
        fed = sorted(reads - self._constants)
        weights = [self._weight(n) for n in sorted(reads & self._constants)]
        session = piece_session(self._model, nodes, weights, {n: self._live[0][n] for n in fed}, wanted)

        def step(store: dict[str, Array]) -> None:
            found = session.run(wanted, {name: store[name] for name in fed})
            store.update(zip(wanted, found, strict=True))

        for _ in self._pool.map(step, self._live):
            pass

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def piece_session(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    fed: Mapping[str, Array],
    outputs: Sequence[str],
) -> Session:
    """A session, on one thread, of some nodes of a model.

    Args:
        model: Where the operator sets are taken from.
        nodes: In topological order.
        weights: The initializers they read.
        fed: An example of everything else they read.
        outputs: What the session gives.
    """
    graph = onnx.GraphProto(name="piece")
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    for name, array in fed.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    piece = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    piece.opset_import.extend(model.opset_import)
    return make_session(piece, threads=1)


def read_names(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors a node reads, in its bodies too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {t.name for t in body.input} | {t.name for t in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            read = {name for inner in body.node for name in read_names(inner)} | {t.name for t in body.output}
            names |= read - own
    return names


def _needed(nodes: list[onnx.NodeProto], stops: set[str]) -> list[onnx.NodeProto]:
    """The nodes that some stop depends on, in order."""
    wanted = set(stops)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= read_names(node)
    return kept[::-1]


def _cut(nodes: list[onnx.NodeProto], stops: list[str]) -> list[tuple[str, list[onnx.NodeProto]]]:
    """Pieces that end where a stop is made."""
    pieces: list[tuple[str, list[onnx.NodeProto]]] = []
    wanted = set(stops)
    piece: list[onnx.NodeProto] = []
    for node in nodes:
        piece.append(node)
        for name in node.output:
            if name in wanted:
                pieces.append((name, piece))
                piece = []
    return pieces


def _last_uses(pieces: Sequence[tuple[str, list[onnx.NodeProto]]]) -> Mapping[str, int]:
    """The last piece that reads each tensor or stops at it."""
    return {
        name: i
        for i, (stop, nodes) in enumerate(pieces)
        for name in [stop, *(name for node in nodes for name in read_names(node))]
    }
