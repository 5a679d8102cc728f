"""Latency of the quantized models over the float one and over onnxruntime.quantization's result.

Batch 1, sessions with all optimizations. The three models take turns, a few runs at a time; ratios are medians
of the ratios of one turn. Between turns nothing runs for a moment: the threads of a session spin for a while after its
last run, and would take the processor from the next model. Whether the CPU has VNNI decides how much integer kernels
gain.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import peer
import tools
from accuracy import open_session
from datasets import Case, cases

import onnxq

SECONDS = 6.0
"""About how long one model is measured in one round."""
WARM_UP = 10
RUNS = 10
"""Runs of one model in one turn."""
REST = 0.05
"""Seconds in front of each turn."""


def alternated(models: dict[str, str], threads: int, seconds: float) -> tools.Row:
    """Median times in milliseconds, and of their ratios to the first model, of models that take turns.

    The input is the one all models share, filled with a constant: kernels' times do not depend on values.
    """
    import numpy as np

    sessions = {name: open_session(Path(path), threads) for name, path in models.items()}
    info = next(iter(sessions.values())).get_inputs()[0]
    feed = {info.name: np.full([d if isinstance(d, int) else 1 for d in info.shape], 0.5, np.float32)}
    for session in sessions.values():
        for _ in range(WARM_UP):
            session.run(None, feed)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    order = list(sessions)
    while time.perf_counter() < end:
        for name in order:
            time.sleep(REST)
            sessions[name].run(None, feed)
            found = []
            for _ in range(RUNS):
                start = time.perf_counter()
                sessions[name].run(None, feed)
                found.append(time.perf_counter() - start)
            times[name].append(statistics.median(found))
        order.reverse()
    row: tools.Row = {name: 1000 * statistics.median(values) for name, values in times.items()}
    for over in ("float", "onnxruntime"):
        for name in times:
            if over in times and name != over:
                row[f"{name} / {over}"] = statistics.median(
                    a / b for a, b in zip(times[name], times[over], strict=True)
                )
    return row | {"turns": len(times["float"])}


def measure(case: Case, options: tools.Options, folder: Path) -> tools.Row:
    """The row of one model."""
    calib = case.calib()
    models = {"float": case.model, "onnxq": folder / "onnxq.onnx", "onnxruntime": folder / "onnxruntime.onnx"}
    onnxq.quantize(case.model, calib, threads=options.threads).save(models["onnxq"])
    note = None
    try:
        peer.quantize(case.model, models["onnxruntime"], calib)
    except Exception as err:  # noqa: BLE001 - whatever the peer fails with is the result
        note = f"onnxruntime failed: {(str(err).strip().splitlines() or [''])[0][:100]}"
        del models["onnxruntime"]
    paths = {name: str(path) for name, path in models.items()}
    seconds = 0.5 if options.quick else SECONDS
    call = {case.name: lambda: tools.in_child(alternated, models=paths, threads=options.threads, seconds=seconds)}
    found = tools.alternate(call, options.rounds)[case.name]
    if problem := tools.failed(found):
        return {"model": case.name, "note": problem}
    columns = ("onnxq / float", "onnxq / onnxruntime", "onnxruntime / float")
    row: tools.Row = {"model": case.name}
    row |= {f"{name}, ms": tools.median(found, name) for name in models}
    row |= {name: tools.median(found, name) for name in columns if name in found[0]}
    ratios = [float(r["onnxq / float"] or 0) for r in found]
    return row | {"spread of onnxq / float": f"{min(ratios):.2f} to {max(ratios):.2f}", "note": note}


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows = []
    for case in cases(options, classifiers_only=True):
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
            rows.append(measure(case, options, Path(name)))
    vnni = {True: "has VNNI", False: "has no VNNI", None: "has VNNI or not: not known"}[tools.has_vnni()]
    notes = [
        f"this CPU {vnni}; {options.threads} threads, batch 1; {options.rounds} rounds, each in a fresh process",
        "bars: onnxq / onnxruntime at most 1.0; onnxq / float at most 0.45 for MobileNetV2 and SqueezeNet",
    ]
    return [tools.Table("Latency", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
