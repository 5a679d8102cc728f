"""PaddleSlim's observers: calibration time over a bare loop, and peak memory over 10 and 1,000 batches.

Time is that of the tapped session, all feeds and the choice of all parameters, weights included, over making a session
and running the same feeds in the same batches; every measurement is a fresh process, the observers take turns with the
bare loop, and ratios are medians of the ratios of one round. The observers are those of a QuantConfig for all layers:
each tensor is observed as it is (no channels are evened out), weights by AbsMaxChannelWiseWeightObserver.

Memory is the peak of a fresh process that loads the model, calibrates with so many batches of one sample, and saves.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import calibration
import memory
import numpy as np
import tools
from datasets import Case, cases, joined

import onnxq
from onnxq import PassManager, QuantContext, Recipe
from onnxq.calib.readers import as_reader
from onnxq.dialects.paddle import observers
from onnxq.passes._inputs import inputs_of
from onnxq.pipeline import build
from onnxq.recipe import EqualizeConfig

TIMED = ("AbsmaxObserver", "HistObserver", "KLObserver", "MSEObserver", "EMDObserver", "AVGObserver")
GROWN = ("HistObserver", "KLObserver", "MSEObserver", "AVGObserver")
BAR = {"HistObserver": 2.5, "KLObserver": 2.5, "MSEObserver": 2.5}


def recipe_for(observer: str) -> Recipe:
    """What a QuantConfig with this observer for all layers means."""
    return Recipe(
        activations=getattr(observers, observer)().activation_config(),
        weights=observers.AbsMaxChannelWiseWeightObserver().weight_config(),
        equalize=EqualizeConfig(depthwise=False),
        refine=(),
    )


def observed(model: str, data: str, observer: str, threads: int) -> tools.Row:
    """Time the passes that need data."""
    feeds = calibration.load(data)
    recipe = recipe_for(observer)
    batches: list[int] = []

    def progress(what: str, done: int, total: int | None) -> None:
        if what == "calibrating":
            batches.append(done)

    ctx = QuantContext(recipe, onnxq.get_target("ort"), threads=threads, progress=progress)
    steps = build(recipe, ctx.target).passes
    first = next(i for i, p in enumerate(steps) if p.name == "Calibrate")
    last = next(i for i, p in enumerate(steps) if p.name == "ChooseParams")
    graph = onnxq.load_model(model)
    PassManager(steps[:first]).run(graph, ctx)
    ctx.reader = as_reader(feeds, inputs_of(graph))
    start = time.perf_counter()
    for step in steps[first : last + 1]:
        step.check(graph, ctx)
        step.run(graph, ctx)
    return {"seconds": time.perf_counter() - start, "batch": batches[0], "tensors": len(ctx.stats)}


def timed(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """Time over the bare loop, in the same batches."""
    calib = case.calib() * (calibration.TINY_REPEATS if case.name in calibration.DIGITS and not options.quick else 1)
    data = str(folder / "calib.npz")
    np.savez(data, **joined(calib, len(calib))[0])
    common: dict[str, Any] = {"model": str(case.model), "data": data, "threads": options.threads}
    rows: list[tools.Row] = []
    for observer in TIMED[1:3] if options.quick else TIMED:
        warm = tools.in_child(observed, observer=observer, **common)
        run = {
            "bare": partial(tools.in_child, calibration.bare, batch=int(warm["batch"] or 1), **common),
            "observed": partial(tools.in_child, observed, observer=observer, **common),
        }
        found = tools.alternate(run, options.rounds)
        row: tools.Row = {"model": case.name, "observer": observer, "samples": len(calib), "batch": warm["batch"]}
        problem = tools.failed(found["bare"]) or tools.failed(found["observed"])
        if problem:
            rows.append(row | {"note": problem})
            continue
        ratios = sorted(
            float(a["seconds"] or 0) / float(b["seconds"] or 1)
            for a, b in zip(found["observed"], found["bare"], strict=True)
        )
        rows.append(
            row
            | {name: tools.median(results, "seconds") for name, results in (("bare, s", found["bare"]),)}
            | {"observed, s": tools.median(found["observed"], "seconds"), "over bare": ratios[len(ratios) // 2]}
            | {"bar": BAR.get(observer)}
        )
    return rows


def calibrated(model: str, base: str, observer: str, samples: int, out: str, threads: int) -> tools.Row:
    """Quantize with batches of one sample that are made when they are read."""
    return memory.ours(model, base, samples, recipe_for(observer).to_dict(), out, threads)


def grown(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """Peak memory by the number of batches."""
    base = folder / "base.npz"
    np.savez(base, **joined(case.calib()[: memory.BASE], memory.BASE)[0])
    counts = (4, 40) if options.quick else (10, 1000)
    rows: list[tools.Row] = []
    for observer in GROWN[:1] if options.quick else GROWN:
        common: dict[str, Any] = {"model": str(case.model), "base": str(base), "observer": observer}
        common |= {"out": str(folder / "q.onnx"), "threads": options.threads}
        found = [tools.in_child(calibrated, samples=n, **common) for n in counts]
        peaks = [float(row["peak_mb"] or 0) for row in found]
        row: tools.Row = {"model": case.name, "observer": observer}
        row |= {f"{n} batches, MB": peak for n, peak in zip(counts, peaks, strict=True)}
        rows.append(row | {"growth, MB": peaks[-1] - peaks[0]})
    return rows


def subject(options: tools.Options) -> Case:
    """MobileNetV2 where there is one."""
    found = {case.name: case for case in cases(tools.Options(zoo=options.zoo), classifiers_only=True)}
    return next((c for name, c in found.items() if name.startswith("mobilenetv2")), found["digits_mobilenet"])


def run(options: tools.Options) -> list[tools.Table]:
    """Both tables."""
    case = subject(options)
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        times = timed(case, options, Path(name))
        peaks = grown(case, options, Path(name))
    return [
        tools.Table("Calibration with PaddleSlim's observers over a bare loop", times, ["bar: 2.5"]),
        tools.Table("Peak memory of calibration with PaddleSlim's observers", peaks, ["bar for the growth: 50 MB"]),
    ]


if __name__ == "__main__":
    tools.main([run], __doc__)
