"""A pass of one's own, composed with those of onnxq.

Many accelerators fuse a Relu into the layer before it, but not a Clip. The pass below turns every
Clip that begins at 0 into a Relu; what that costs in accuracy is printed.
"""

from pathlib import Path

import numpy as np

from onnxq import Fact, GraphModel, Pass, PassManager, PassReport, QuantContext, Recipe, get_target, load_model
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.sweep import Sweep
from onnxq.runtime import make_session

MODELS = Path(__file__).resolve().parent.parent / "models"


class ClipToRelu(Pass):
    """Every ``Clip(x, 0, ...)`` becomes a Relu. The function changes where the Clip had cut something off."""

    requires = frozenset({Fact.CONSTANTS_LIFTED})  # so that the bounds of a Clip can be read
    invalidates = frozenset({Fact.PLAN, Fact.STATS, Fact.PARAMS})  # measured ranges no longer hold

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Replace them one by one."""
        clips = [n for n in graph.nodes("Clip") if graph.is_constant(n.inputs[1]) and graph.value(n.inputs[1]) == 0]
        for clip in clips:
            source, result = clip.inputs[0], clip.outputs[0]
            graph.remove_node(clip)
            graph.add_node("Relu", [source], name=f"{clip.name}_relu", outputs=[result])
        return PassReport(changed=len(clips))


def accuracy(graph: GraphModel) -> float:
    """Share of the test images that are classified rightly."""
    images = np.load(MODELS / "data" / "digits_test.npz")
    labels = np.load(MODELS / "data" / "digits_test_labels.npy")
    logits = make_session(graph.to_proto(), threads=1).run(None, dict(images))[0]
    return float((logits.argmax(axis=1) == labels).mean())


graph = load_model(MODELS / "digits_mobilenet.onnx")
print(f"before: {len(graph.nodes('Clip'))} Clip, {len(graph.nodes('Relu'))} Relu, accuracy {accuracy(graph):.2%}")

ctx = QuantContext(recipe=Recipe(), target=get_target("ort"))
PassManager([AssignNames(), LiftConstants(), FuseBatchNorm(), ClipToRelu(), Sweep()]).run(graph, ctx)
for report in ctx.reports:
    print(f"  {report.name:15} {report.changed:3} changes")
print(f"after:  {len(graph.nodes('Clip'))} Clip, {len(graph.nodes('Relu'))} Relu, accuracy {accuracy(graph):.2%}")
