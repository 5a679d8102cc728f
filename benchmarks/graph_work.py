"""Everything but calibration: how time grows with the nodes, and memory with the weights.

Graph work is timed on generated models of 5,000 and 10,000 nodes: loading, every pass that does not run
the model, saving. Weight quantization is measured on a generated model with 3 GB of weights in a file:
once with ranges that are given, so that only graph and weights are handled, and once calibrated with
random data, where ONNX Runtime needs memory for the weights too.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import tools
from generated import CHANNELS, many_nodes, many_weights

import onnxq
from onnxq import Fact, GraphModel, Pass, PassManager, PassReport, QuantContext, Recipe
from onnxq.pipeline import build
from onnxq.stats import TensorStats

RUNS_THE_MODEL = frozenset({"Calibrate", "SearchRanges", "CorrectBias"})
"""Passes whose time is that of forward passes."""
IMAGE = 4


def quantize_nodes(model: str, out: str) -> tools.Row:
    """Seconds of each step of quantizing a model of many nodes.

    The calibration data are two samples. Numba's kernels are compiled before.
    """
    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((2, CHANNELS, IMAGE, IMAGE), np.float32)}
    onnxq.quantize(many_nodes(40), data)
    start = time.perf_counter()
    result = onnxq.quantize(model, data)
    done = time.perf_counter()
    result.save(out)
    saved = time.perf_counter()
    steps = {r.name: r.seconds for r in result.reports}
    running = sum(seconds for name, seconds in steps.items() if name in RUNS_THE_MODEL)
    return {
        "whole": saved - start,
        "graph work": saved - start - running,
        "load and copy": done - start - sum(steps.values()),
        **steps,
        "save": saved - done,
    }


def nodes_table(options: tools.Options, folder: Path) -> tools.Table:
    """Graph work on models of two sizes."""
    sizes = (500, 1000) if options.quick else (5_000, 10_000)
    for size in sizes:
        onnx.save(many_nodes(size, size=IMAGE), folder / f"{size}.onnx")
    targets = {
        str(size): lambda size=size: tools.in_child(
            quantize_nodes, model=str(folder / f"{size}.onnx"), out=str(folder / f"{size}.q.onnx")
        )
        for size in sizes
    }
    found = tools.alternate(targets, options.rounds)
    small, large = (found[str(size)] for size in sizes)
    problem = tools.failed(small) or tools.failed(large)
    if problem:
        return tools.Table("Graph work", [{"step": problem}])
    rows: list[tools.Row] = []
    for name in [n for n in small[0] if n != "peak_mb"]:
        few, many = tools.median(small, name), tools.median(large, name)
        ratio = many / few if few > 0.005 else None
        rows.append({"step": name, f"{sizes[0]} nodes, s": few, f"{sizes[1]} nodes, s": many, "ratio": ratio})
    notes = [
        f"graph work: whole without {', '.join(sorted(RUNS_THE_MODEL))}; bar for the ratio: 2.3",
        f"medians of {options.rounds} rounds, each in a fresh process, the sizes in turn",
    ]
    return tools.Table("Graph work on a generated model", rows, notes)


@dataclass(frozen=True)
class GivenRanges(Pass):
    """Takes -4 to 4 for the range of every activation instead of measuring it."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATS})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Fill in the statistics."""
        names = ctx.plan.activations if ctx.plan is not None else ()
        ctx.stats = {name: TensorStats(-4.0, 4.0, 1) for name in names}
        return PassReport()


def quantize_weights(model: str, out: str) -> tools.Row:
    """Quantize a model whose activations' ranges are given."""
    recipe = Recipe.from_dict({"activations": {"method": "minmax"}, "refine": []})
    ctx = QuantContext(recipe, onnxq.get_target("ort"))
    passes = [p for p in build(recipe, ctx.target).passes if p.name not in {*RUNS_THE_MODEL, "SpreadChannels"}]
    place = next(i for i, p in enumerate(passes) if p.name == "ChooseParams")
    start = time.perf_counter()
    graph = onnxq.load_model(model)
    PassManager([*passes[:place], GivenRanges(), *passes[place:]]).run(graph, ctx)
    before = tools.peak_mb()
    onnxq.save_model(graph, out)
    return {"seconds": time.perf_counter() - start, "before saving": before}


def quantize_calibrated(model: str, out: str, samples: int) -> tools.Row:
    """Quantize a model with a few random samples."""
    calibration = {"random": True, "random_samples": samples}
    recipe = {"activations": {"method": "minmax"}, "refine": [], "calibration": calibration}
    start = time.perf_counter()
    result = onnxq.quantize(model, recipe=recipe)
    before = tools.peak_mb()
    result.save(out)
    return {"seconds": time.perf_counter() - start, "before saving": before}


def run_once(model: str) -> tools.Row:
    """Load a model into ONNX Runtime and run one sample: what calibration cannot do without."""
    import onnxruntime as ort

    start = time.perf_counter()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    info = session.get_inputs()[0]
    session.run(None, {info.name: np.ones((1, *info.shape[1:]), np.float32)})
    return {"seconds": time.perf_counter() - start}


def weights_table(options: tools.Options, folder: Path) -> tools.Table:
    """Peak memory of a model with many weights."""
    gigabytes = 0.3 if options.quick else 3.0
    model = folder / "large.onnx"
    many_weights(model, gigabytes)
    out = str(folder / "large.q.onnx")
    measurements = {
        "weights only, ranges given": lambda: tools.in_child(quantize_weights, model=str(model), out=out),
        "calibrated, 2 random samples": lambda: tools.in_child(
            quantize_calibrated, model=str(model), out=out, samples=2
        ),
        "ONNX Runtime alone, 1 sample": lambda: tools.in_child(run_once, model=str(model)),
    }
    rows: list[tools.Row] = []
    for name, found in tools.alternate(measurements, 1).items():
        row = found[0]
        figures = {
            "peak MB": row.get("peak_mb"),
            "before saving, MB": row.get("before saving"),
            "seconds": row.get("seconds"),
        }
        rows.append({"what": name, **figures, "note": tools.failed(found)})
    title = f"A model with {gigabytes:g} GB of weights in a file"
    return tools.Table(title, rows, ["peak resident memory of a fresh process; bar for the weights alone: 1500 MB"])


def run(options: tools.Options) -> list[tools.Table]:
    """Both tables."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        return [nodes_table(options, Path(name)), weights_table(options, Path(name))]


if __name__ == "__main__":
    tools.main([run], __doc__)
