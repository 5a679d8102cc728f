"""Fusing and equalizing under the eyes of instruments.

ONNX Runtime runs the model before and after every pass that claims to preserve the function; the
first one that does not is an error. The model after each pass is saved, for a look with Netron.
"""

import tempfile
from pathlib import Path

import numpy as np

from onnxq import PassManager, QuantContext, Recipe, get_target, load_model
from onnxq.instruments import DumpAfterEachPass, Progress, Timing, VerifyEquivalence
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.sweep import Sweep

MODELS = Path(__file__).resolve().parent.parent / "models"

passes = [
    AssignNames(),
    LiftConstants(),  # before all that reads weights
    FoldConstants(),
    InferShapes(),
    FuseBatchNorm(),  # before equalization: it changes the ranges of the weights
    EqualizeLayers(),
    Sweep(),
]
images = np.load(MODELS / "data" / "digits_calib.npz")["image"]
timing = Timing()
verify = VerifyEquivalence(feeds=[{"image": images[:8]}, {"image": images[8:16]}], rtol=1e-5)

with tempfile.TemporaryDirectory() as folder, Progress(total=len(passes)) as progress:
    graph = load_model(MODELS / "digits_cnn.onnx")
    ctx = QuantContext(recipe=Recipe(), target=get_target("ort"))
    manager = PassManager(passes, instruments=(timing, verify, progress, DumpAfterEachPass(Path(folder))))
    manager.run(graph, ctx)
    saved = sorted(path.name for path in Path(folder).iterdir())

print(f"{'pass':15} {'changed':>7} {'deviation':>10} {'seconds':>8}   (deviation 1 would be as much as allowed)")
for report in ctx.reports:
    print(f"{report.name:15} {report.changed:7} {verify.deviations[report.name]:10.3f} {report.seconds:8.3f}")
print(f"{timing.total:.3f} s in all; saved {saved[0]} to {saved[-1]}")
for report in ctx.reports:
    for skip in report.skipped:
        print(f"{report.name} left {skip.node} alone: {skip.reason}")
