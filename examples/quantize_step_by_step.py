"""Post-training quantization put together by hand: what `onnxq.quantize` does, with a look at every stage.

The passes come in two groups: the first prepares the float model and decides, the second writes. Between
them `ctx` holds what was found: the plan, the statistics, the scales.
"""

from pathlib import Path

import numpy as np

from onnxq import GraphModel, PassManager, QuantContext, Recipe, get_target, load_model
from onnxq.calib.readers import as_reader
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.choose_params import ChooseParams
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.lift_constants import LiftConstants
from onnxq.passes.normalize_gemm import NormalizeGemm
from onnxq.passes.select_layers import SelectLayers
from onnxq.passes.sweep import Sweep
from onnxq.runtime import make_session

MODELS = Path(__file__).resolve().parent.parent / "models"


def accuracy(graph: GraphModel) -> float:
    """Share of the test images that are classified rightly."""
    labels = np.load(MODELS / "data" / "digits_test_labels.npy")
    logits = make_session(graph).run(None, dict(np.load(MODELS / "data" / "digits_test.npz")))[0]
    return float((logits.argmax(axis=1) == labels).mean())


graph = load_model(MODELS / "digits_cnn.onnx")
reader = as_reader(MODELS / "data" / "digits_calib.npz", make_session(graph).inputs, samples=100)
recipe = Recipe.from_dict({"activations": {"method": "percentile"}, "skip": ["head"]})
ctx = QuantContext(recipe, get_target("ort"), reader)
print(f"float: accuracy {accuracy(graph):.2%}")

float_passes = [AssignNames(), LiftConstants(), FoldConstants(), InferShapes(), FuseBatchNorm(), NormalizeGemm()]
decide = PassManager([*float_passes, SelectLayers(), Calibrate(), ChooseParams()])
decide.run(graph, ctx)
print("plan: " + ", ".join(f"{count} {role}" for role, count in ctx.plan.counts().items()))
for decision in ctx.plan.left_float():
    print(f"  {decision.node} stays float: {decision.reason}")
for name in list(ctx.plan.activations)[:3]:
    stats, params = ctx.stats[name], ctx.params[name]
    print(f"  {name}: seen {stats.low:.3f} to {stats.high:.3f}, codes reach to {params.high:.3f}")

write = PassManager([CorrectBias(samples=32), InsertQdq(), Sweep()], initial=decide.provides)
write.run(graph, ctx)
print(f"int8: accuracy {accuracy(graph):.2%}, {len(graph.nodes('QuantizeLinear'))} QuantizeLinear")
