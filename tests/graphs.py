"""Tiny models for tests: built from ONNX text, run with ONNX Runtime, compared with a stated tolerance.

    model = build("g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, W) }", W=weights)
    before = run(model, feeds_for(model))

Import it as ``from tests.graphs import build, run, ...``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.context import QuantContext
from onnxq.graph import GraphModel

if TYPE_CHECKING:
    from onnxq.passes._base import Pass, PassReport

Feed = dict[str, NDArray[Any]]


def build(text: str, *, opset: int = 17, ir_version: int = 8, check: bool = True, **constants: Any) -> onnx.ModelProto:
    """Return the model whose graph is `text` (ONNX text format) with `constants` as initializers.

    Arrays keep their dtype, except that Python numbers and lists of floats become float32.
    Extra opset domains go into the text's header: then `text` starts with ``<``.
    """
    header = "" if text.lstrip().startswith("<") else f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    model = onnx.parser.parse_model(header + text)
    for name, value in constants.items():
        array = np.asarray(value)
        if not isinstance(value, (np.ndarray, np.generic)) and array.dtype == np.float64:
            array = array.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    if check:
        onnx.checker.check_model(model, full_check=True)
    return model


def graph_of(text: str, *, opset: int = 17, **constants: Any) -> GraphModel:
    """`build` as a `GraphModel`."""
    return GraphModel.from_proto(build(text, opset=opset, **constants))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    """Normal float32 numbers of `shape`; the same for the same seed."""
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def positive(*shape: int, seed: int = 0, low: float = 0.5, high: float = 2.0) -> NDArray[np.float32]:
    """Uniform float32 numbers in ``[low, high)`` of `shape`: variances, scales."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, size=shape).astype(np.float32)


def feeds_for(model: onnx.ModelProto, *, seed: int = 0, dims: Mapping[str, int] | None = None, free: int = 2) -> Feed:
    """Random values for every input of `model` that has no initializer.

    Args:
        model: The model.
        seed: Same seed, same feed.
        dims: Sizes of named dimensions.
        free: Size of every dimension that is in neither the model nor `dims`.
    """
    rng = np.random.default_rng(seed)
    known = {t.name for t in model.graph.initializer}
    feed: Feed = {}
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else (dims or {}).get(d.dim_param, free) for d in tensor.shape.dim
        )
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if dtype == np.bool_:
            feed[value.name] = rng.integers(0, 2, size=shape).astype(np.bool_)
        elif dtype.kind in "iu":
            feed[value.name] = rng.integers(0, 2, size=shape).astype(dtype)
        else:
            feed[value.name] = rng.normal(size=shape).astype(dtype)
    return feed


def session(model: onnx.ModelProto, *, optimize: bool = False) -> ort.InferenceSession:
    """A single-threaded session; without graph optimization, so that every node runs as written."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | GraphModel, feed: Feed | None = None, *, optimize: bool = False) -> Feed:
    """Every output of `model` by name; `feed` defaults to ``feeds_for(model)``."""
    proto = model if isinstance(model, onnx.ModelProto) else model.to_proto()
    sess = session(proto, optimize=optimize)
    names = [o.name for o in sess.get_outputs()]
    return dict(zip(names, sess.run(names, feeds_for(proto) if feed is None else feed), strict=True))


def deviation(expected: Feed, actual: Feed) -> float:
    """Largest ``max|a - b| / max|a|`` over all outputs; infinity where names, shapes or NaNs differ."""
    if list(expected) != list(actual):
        return float("inf")
    worst = 0.0
    for name, a in expected.items():
        b = actual[name]
        if a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        if differ.any():
            wide = a.astype(np.float64)
            gap = np.abs(wide[differ] - b.astype(np.float64)[differ]).max()
            worst = max(worst, float(gap / max(np.abs(wide[np.isfinite(wide)]).max(initial=0.0), 1e-30)))
    return worst


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto | GraphModel, *, rtol: float) -> None:
    """Both models give the same outputs on three random feeds, within ``rtol * max|expected|``."""
    proto = after if isinstance(after, onnx.ModelProto) else after.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    for seed in range(3):
        feed = feeds_for(before, seed=seed)
        gap = deviation(run(before, feed), run(proto, feed))
        assert gap <= rtol, f"outputs deviate by {gap:.3g} of their range, allowed {rtol:.3g}"


def context(**values: Any) -> QuantContext:
    """A `QuantContext`; recipe and target are None unless given, for passes that need neither."""
    return QuantContext(**{"recipe": cast("Any", None), "target": cast("Any", None), **values})


def apply(graph: GraphModel, *passes: Pass, ctx: QuantContext | None = None) -> PassReport:
    """Run `passes` by hand (check, run, validate, verify) and return the last one's report."""
    ctx = ctx or context()
    for step in passes:
        step.check(graph, ctx)
        report = step.run(graph, ctx)
        graph.validate()
        step.verify(graph, ctx)
    return report


def ops(model: onnx.ModelProto | GraphModel) -> list[str]:
    """The op types of the main graph, in order."""
    proto = model if isinstance(model, onnx.ModelProto) else model.to_proto()
    return [n.op_type for n in proto.graph.node]


def reasons(report: PassReport) -> dict[str, str]:
    """Skip reasons by node name."""
    return {s.node: s.reason for s in report.skipped}
