"""A pipeline of one's own: pick passes, nest managers, and see a wrong order refused.

Every pass says which facts it needs, which it makes true and which it makes false. A manager that
cannot work is an error when it is constructed, before anything runs.
"""

from pathlib import Path

from onnxq import Pass, PassManager, QuantContext, Recipe, RecipeError, get_target, load_model
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.sweep import Sweep

MODELS = Path(__file__).resolve().parent.parent / "models"


def attempt(passes: list[Pass]) -> None:
    """Say whether these passes can run in this order."""
    names = ", ".join(step.name for step in passes)
    try:
        PassManager(passes)
    except RecipeError as err:
        print(f"refused: {names}\n         {err}")
    else:
        print(f"fine:    {names}")


attempt([FuseBatchNorm(), LiftConstants()])
attempt([LiftConstants(), EqualizeLayers(), FuseBatchNorm()])
attempt([LiftConstants(), FuseBatchNorm(), EqualizeLayers()])

# A manager is a pass: what it needs, provides and invalidates follows from its passes.
normalize = PassManager([AssignNames(), LiftConstants(), FoldConstants(), InferShapes()])
manager = PassManager(
    [
        normalize,
        FuseBatchNorm(skip_layers=("block2/*",)),  # names or globs; a name that matches nothing is an error
        EqualizeLayers(drop_clips=True),  # no longer claims to preserve the function
        Sweep(),
    ]
)
print(f"provides {', '.join(sorted(fact.name for fact in manager.provides))}")
print(f"preserves the function: {manager.preserves_function}")

graph = load_model(MODELS / "digits_mobilenet.onnx")
report = manager.run(graph, QuantContext(recipe=Recipe(), target=get_target("ort")))
print(f"{report.changed} changes, {len(graph.nodes())} nodes left")
for skip in report.skipped[:5]:
    print(f"left {skip.node} alone: {skip.reason}")
