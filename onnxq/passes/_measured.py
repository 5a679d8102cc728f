"""Tensors that share a scale, and which of them carry the numbers."""

from __future__ import annotations

from onnxq.errors import CalibrationError
from onnxq.graph import GraphModel
from onnxq.opinfo import OPS
from onnxq.plan import ActivationPlan, Plan
from onnxq.stats import TensorStats


def is_measured(graph: GraphModel, plan: Plan, activation: ActivationPlan) -> bool:
    """Whether a tensor needs numbers of its own: not if it only passes on what its group has elsewhere."""
    node = graph.producer(graph.tensor(activation.tensor))
    if node is None or node.op not in OPS or OPS[node.op].kind not in ("passive", "join"):
        return True
    inputs = node.inputs if OPS[node.op].inputs is None else [node.inputs[i] for i in OPS[node.op].inputs or ()]
    return not all(
        t.name in plan.activations and plan.activations[t.name].group == activation.group for t in inputs if t.name
    )


def groups_of(plan: Plan) -> dict[str, list[ActivationPlan]]:
    """The activations of a plan by group, in topological order."""
    groups: dict[str, list[ActivationPlan]] = {}
    for activation in plan.activations.values():
        groups.setdefault(activation.group, []).append(activation)
    return groups


def merged_stats(
    members: list[ActivationPlan], stats: dict[str, TensorStats]
) -> tuple[TensorStats, tuple[float, float]]:
    """The statistics of all members of a group together, and the bounds their values keep to.

    Raises:
        CalibrationError: If none was measured, or all were empty.
    """
    measured = [(m, stats[m.tensor]) for m in members if m.tensor in stats]
    if not measured:
        raise CalibrationError(f"tensor {members[0].tensor!r} was not measured; run Calibrate after SelectLayers")
    total = measured[0][1]
    for _, more in measured[1:]:
        total = total.merge(more)
    if not total.count:
        raise CalibrationError(
            f"tensor {members[0].tensor!r} was empty for all samples; leave its nodes out with --skip"
        )
    return total, (min(m.bounds[0] for m, _ in measured), max(m.bounds[1] for m, _ in measured))
