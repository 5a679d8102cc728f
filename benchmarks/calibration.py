"""Calibration time over a bare loop of `session.run` on the same feeds, same batch and threads.

Every measurement is a fresh process that has imported its modules and loaded its feeds; onnxq's has also
loaded, fused and planned the model, onnxruntime's calibrators get a pre-processed file. Timed is then

* bare loop: making the session (from the file, all optimizations) and running all feeds;
* onnxq, statistics: making the tapped session and running all feeds (pass Calibrate);
* onnxq, ranges: that, the search of ranges and the choice of all parameters, weights included;
* onnxq, whole: `onnxq.quantize` from the float file to the saved quantized one;
* onnxruntime: its calibrator from making the augmented model to the finished ranges.

The measurements of one model take turns; ratios are medians of the ratios of one round. The batch is the one
onnxq chooses by itself. Compiled kernels come from numba's cache on disk, which one run before fills.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peer
import tools
from accuracy import open_session
from datasets import DIGITS, Case, Feed, cases, joined

import onnxq
from onnxq import Pass, PassManager, QuantContext, Recipe
from onnxq.calib.readers import as_reader
from onnxq.passes._inputs import inputs_of
from onnxq.pipeline import build

METHODS = ("minmax", "percentile", "kl", "mse", "output_mse")
"""Of onnxq; the last is the default."""
TINY_REPEATS = 10
"""How often the digits are run: once takes a few hundredths of a second."""


def load(file: str) -> list[Feed]:
    """Feeds of one sample each, from arrays by input name."""
    with np.load(file, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    count = len(next(iter(arrays.values())))
    return [{name: x[k : k + 1] for name, x in arrays.items()} for k in range(count)]


def recipe_for(method: str) -> Recipe:
    """The default recipe with another method and no refinement."""
    return Recipe.from_dict({"activations": {"method": method}, "refine": []})


def bare(model: str, data: str, batch: int, threads: int) -> tools.Row:
    """Make a session and run all feeds."""
    feeds = joined(load(data), batch)
    start = time.perf_counter()
    session = open_session(Path(model), threads)
    for feed in feeds:
        session.run(None, feed)
    return {"seconds": time.perf_counter() - start}


def passes(model: str, data: str, method: str, threads: int) -> tools.Row:
    """Time the passes of onnxq that need data."""
    feeds = load(data)
    recipe = recipe_for(method)
    batches: list[int] = []

    def progress(what: str, done: int, total: int | None) -> None:
        if what == "calibrating":
            batches.append(done)

    ctx = QuantContext(recipe, onnxq.get_target("ort"), threads=threads, progress=progress)
    steps = build(recipe, ctx.target).passes
    first = next(i for i, p in enumerate(steps) if p.name == "Calibrate")
    last = next(i for i, p in enumerate(steps) if p.name == "ChooseParams")
    graph = onnxq.load_model(model)
    before = PassManager(steps[:first])
    before.run(graph, ctx)
    ctx.reader = as_reader(feeds, inputs_of(graph))
    start = time.perf_counter()
    _run(steps[first], graph, ctx)
    counted = time.perf_counter()
    for step in steps[first + 1 : last + 1]:
        _run(step, graph, ctx)
    return {"seconds": counted - start, "ranges": time.perf_counter() - start, "batch": batches[0]}


def _run(step: Pass, graph: onnxq.GraphModel, ctx: QuantContext) -> None:
    step.check(graph, ctx)
    step.run(graph, ctx)


def whole(model: str, data: str, recipe: dict[str, Any], out: str, threads: int) -> tools.Row:
    """Time quantization from file to file."""
    feeds = load(data)
    start = time.perf_counter()
    onnxq.quantize(model, feeds, recipe=recipe, threads=threads).save(out)
    return {"seconds": time.perf_counter() - start}


def peer_calibrator(prepared: str, data: str, batch: int, method: str, scratch: str) -> tools.Row:
    """Time a calibrator of onnxruntime.quantization."""
    feeds = joined(load(data), batch)
    start = time.perf_counter()
    peer.calibrate(Path(prepared), Path(scratch), feeds, method)
    return {"seconds": time.perf_counter() - start}


def measure(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """The rows of one model."""
    calib = case.calib() * (TINY_REPEATS if case.name in DIGITS and not options.quick else 1)
    data, prepared = str(folder / "calib.npz"), folder / "prepared.onnx"
    np.savez(data, **joined(calib, len(calib))[0])
    peer.preprocess(case.model, prepared)
    common = {"model": str(case.model), "data": data, "threads": options.threads}
    warm = tools.in_child(passes, method="output_mse", **common)
    batch = int(warm["batch"] or 1)
    calib = calib[: len(calib) // batch * batch]  # onnxruntime's histograms take whole batches only
    np.savez(data, **joined(calib, len(calib))[0])
    tools.in_child(whole, recipe={}, out=str(folder / "q.onnx"), **common)

    run: dict[str, Callable[[], tools.Row]] = {"bare loop": partial(tools.in_child, bare, batch=batch, **common)}
    run |= {f"onnxq {m}": partial(tools.in_child, passes, method=m, **common) for m in METHODS}
    for name, recipe in (("minmax", recipe_for("minmax").to_dict()), ("default recipe", {})):
        out = str(folder / "q.onnx")
        run[f"onnxq whole, {name}"] = partial(tools.in_child, whole, recipe=recipe, out=out, **common)
    rows = _table(tools.alternate(run, options.rounds))
    run = {"bare loop": run["bare loop"]} | {
        f"onnxruntime {method}": partial(
            tools.in_child, peer_calibrator, prepared=str(prepared), data=data, batch=batch, method=method,
            scratch=str(folder / "augmented.onnx"),
        )
        for method in peer.METHODS
    }  # fmt: skip
    if options.peer_rounds:
        rows += _table(tools.alternate(run, options.peer_rounds))[1:]
    facts: tools.Row = {"model": case.name, "samples": len(calib), "batch": batch}
    return [facts | row for row in rows]


def _table(found: dict[str, list[tools.Row]]) -> list[tools.Row]:
    rows: list[tools.Row] = []
    bare_rows = found["bare loop"]
    for name, results in found.items():
        row: tools.Row = {"what": name, "s": None, "over bare": None, "ranges s": None, "ranges over bare": None}
        if problem := tools.failed(results):
            rows.append(row | {"rounds": 0, "note": problem})
            continue
        row |= {"s": tools.median(results, "seconds"), "over bare": _over(results, bare_rows)}
        if "ranges" in results[0]:
            row["ranges s"] = tools.median(results, "ranges")
            row["ranges over bare"] = _over(results, bare_rows, "ranges")
        rows.append(row | {"rounds": len(results)})
    return rows


def _over(results: list[tools.Row], bare_rows: list[tools.Row], key: str = "seconds") -> float:
    return statistics.median(
        float(a[key] or 0) / float(b["seconds"] or 1) for a, b in zip(results, bare_rows, strict=True)
    )


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows: list[tools.Row] = []
    chosen = [c for c in cases(options, classifiers_only=True) if not c.name.startswith(("mobilenetv1", "squeeze"))]
    for case in chosen:
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
            rows += measure(case, options, Path(name))
    notes = [line.strip() for line in (__doc__ or "").splitlines()[2:] if line.strip()]
    return [
        tools.Table("Calibration time over a bare loop", rows, [*notes, "bars: min-max 1.3, histogram methods 2.0"])
    ]


if __name__ == "__main__":
    tools.main([run], __doc__)
