"""Rewrites what the training runtime derives wrongly or not at all, and refuses the rest by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._legal_activations import ACTIVATIONS
from onnxq.passes._legal_arithmetic import ARITHMETIC
from onnxq.passes._legal_einsum import EINSUM
from onnxq.passes._legal_moves import MOVES
from onnxq.passes._legal_norms import NORMS
from onnxq.passes._legal_ops import DERIVED, op_of
from onnxq.passes._legal_paths import BODIES, Paths, find_paths
from onnxq.passes._legal_recurrent import RECURRENT
from onnxq.passes._legal_reductions import REDUCTIONS
from onnxq.passes._legal_resize import RESIZES
from onnxq.passes._legal_site import LegalChain, RefusalError, Rewrite, Site
from onnxq.passes._legal_statistics import train_statistics
from onnxq.passes._legal_windows import WINDOWS

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_OLDEST, _OLDEST_WITH_STATISTICS = 13, 15
_SHOWN = 5
_PARTS = ("Slice", "Gather")

REWRITES: Mapping[str, Rewrite] = MappingProxyType(
    {**ACTIVATIONS, **ARITHMETIC, **EINSUM, **MOVES, **NORMS, **RECURRENT, **REDUCTIONS, **RESIZES, **WINDOWS}
)
"""What is done with an operator that gradients must pass."""


@dataclass(frozen=True)
class LegalizeForTraining(Pass):
    """Makes a graph one whose gradients onnxruntime-training has right.

    Only operators between trained parameters and outputs matter; the others stay as they are.

    Given:
        a graph with known shapes.
    Result:
        a graph of the same function, of operators whose gradients were verified. Parameters and outputs keep their
        names. Where the recipe says ``training.batchnorm: train``, BatchNormalization takes the statistics of the
        batch, and ``ctx.frozen`` names the initializers with the running ones.

    Attributes:
        trained: Names of the parameters that are trained, besides those of quantizers; inputs may be among them.
        outputs: Names of the graph outputs that the loss depends on; empty: all.

    Source: specs of training, sections 3 and 4.
    """

    trained: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite.

        Raises:
            GraphError: If an operator has no verified gradient, and no rewriting that has one.
        """
        statistics = ctx.recipe is not None and ctx.recipe.training.batchnorm == "train"
        _modernize(graph, statistics)
        changed = 0
        if statistics:
            ctx.frozen = train_statistics(graph)
            changed += len(ctx.frozen) // 2
        refused: dict[str, str] = {}
        changed += _rewrite(graph, self._paths(graph, ctx), refused)
        graph.sort()
        changed += _hold_apart(graph, self._paths(graph, ctx))
        changed += _separate(graph, self._parameters(ctx))
        graph.sweep()
        _check(self._paths(graph, ctx), refused)
        return PassReport(changed=changed)

    def _parameters(self, ctx: QuantContext) -> frozenset[str]:
        learned = [name for r in ctx.ranges_learned for name in r.parameters]
        learned += [s.parameter for s in ctx.scales_learned if s.parameter]
        return frozenset([*learned, *self.trained])

    def _paths(self, graph: GraphModel, ctx: QuantContext) -> Paths:
        return find_paths(graph, self._parameters(ctx), self.outputs)


def _modernize(graph: GraphModel, statistics: bool) -> None:
    """Bring the graph to an operator set that the rewritings are written in."""
    oldest = _OLDEST_WITH_STATISTICS if statistics and graph.nodes("BatchNormalization") else _OLDEST
    if graph.opset >= oldest:
        return
    try:
        graph.upgrade_opset(oldest)
    except GraphError as err:
        raise GraphError(
            f"the model has opset {graph.opset}, training needs {oldest}, and it cannot be converted ({err}); "
            "export it with that one"
        ) from err
    for node in graph.nodes("Constant"):
        graph.lift(node)
    for node in graph.nodes():
        if not node.name:
            graph.rename_node(node, graph.unique_name(f"{node.op.lower()}_0"))


def _rewrite(graph: GraphModel, paths: Paths, refused: dict[str, str]) -> int:
    """Rewrite the nodes of the paths; what cannot be is noted with the reason."""
    changed = 0
    for node in paths.nodes:
        rewrite = REWRITES.get(op_of(node))
        if rewrite is None:
            continue
        try:
            result = rewrite(Site(graph, node, paths.moved, paths.wanted))
        except RefusalError as err:
            refused[str(node.name)] = f"node {node.name!r} ({op_of(node)}): {err}"
            continue
        if not isinstance(result, bool):
            _replace(graph, node, result)
        changed += result is not False
    return changed


def _replace(graph: GraphModel, node: Node, result: Tensor) -> None:
    """Let what was written for a node compute its first output."""
    out = node.outputs[0]
    if graph.producer(result) is None or any(t is result for t in node.inputs):
        result = LegalChain(graph, str(node.name)).identity(result)
    graph.remove_node(node)
    maker = graph.producer(result)
    graph.replace_output(maker, next(i for i, t in enumerate(maker.outputs) if t is result), out)


def _hold_apart(graph: GraphModel, paths: Paths) -> int:
    """Let parts of a tensor that the loss does not depend on be parts of a copy that passes no gradient.

    The runtime makes one Split of all parts, and would put together the gradients of the others alone.
    """
    held: dict[str, Tensor] = {}
    derived = {str(node.name) for node in paths.nodes}
    parted = {node.inputs[0].name for node in paths.nodes if op_of(node) in _PARTS}
    idle = [n for n in graph.nodes(*_PARTS) if str(n.name) not in derived and n.inputs[0].name in parted]
    for node in idle:
        source = node.inputs[0]
        if source.name not in held:
            held[str(source.name)] = LegalChain(graph, str(node.name)).detach(source)
        graph.set_input(node, 0, held[str(source.name)])
    graph.sort()
    return len(idle)


def _separate(graph: GraphModel, parameters: frozenset[str]) -> int:
    """Let no node read a parameter twice: the runtime would write its gradient twice under one name."""
    changed = 0
    for node in graph.nodes():
        seen: set[int] = set()
        for index, tensor in enumerate(node.inputs):
            if tensor.name in parameters and id(tensor) in seen:
                graph.set_input(node, index, LegalChain(graph, str(node.name)).identity(tensor))
                changed += 1
            seen.add(id(tensor))
    return changed


def _check(paths: Paths, refused: dict[str, str]) -> None:
    """Raise `GraphError` if gradients must pass what has none."""
    for node in paths.nodes:
        if str(node.name) not in refused and (reason := _why_not(node, paths)) is not None:
            refused[str(node.name)] = f"node {node.name!r} ({op_of(node)}): {reason}"
    if refused:
        told = "; ".join(list(refused.values())[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise GraphError(f"{len(refused)} nodes cannot be trained through: {told}{more}")


def _why_not(node: Node, paths: Paths) -> str | None:
    if op_of(node) in BODIES:
        return (
            "gradients cannot enter its body; name the parameters in front of it in training.freeze, or export the "
            "model without it"
        )
    allowed = DERIVED.get(op_of(node))
    if allowed is None:
        return (
            "the training runtime has no verified gradient for it; name the parameters in front of it in "
            "training.freeze, or export it in other operators"
        )
    wrong = [i for i, t in enumerate(node.inputs) if t.name in paths.moved and i not in allowed]
    if wrong:
        name = node.inputs[wrong[0]].name
        return f"no gradient passes its input {wrong[0]} ({name!r}); name the parameters before it in training.freeze"
    return None
