"""What each type of codes costs and keeps: SQNR, agreement and latency over float by types of activations and weights.

Float8 and 16-bit codes have no kernels on the CPU: their latency is that of decoding around float kernels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tools
from accuracy import Float
from datasets import Case, cases

import onnxq
from onnxq.report.benchmark import benchmark

TYPES: dict[str, tuple[str, str]] = {
    "uint8 x int8 (default)": ("uint8", "int8"),
    "uint16 x int8": ("uint16", "int8"),
    "int16 x int8": ("int16", "int8"),
    "uint16 x int16": ("uint16", "int16"),
    "E4M3 x E4M3": ("float8e4m3fn", "float8e4m3fn"),
    "E5M2 x E4M3": ("float8e5m2", "float8e4m3fn"),
    "E5M2 x E5M2": ("float8e5m2", "float8e5m2"),
}
_TURNS = 15
_QUICK_TURNS = 6


def measure(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """A row for each pair of types."""
    calib = case.calib()
    feeds, labels = case.evaluation()
    reference = Float(case.model, feeds, labels, options.threads)
    files: dict[str, Path] = {}
    rows: list[tools.Row] = []
    for number, (name, (activations, weights)) in enumerate(TYPES.items()):
        recipe = {"activations": {"type": activations}, "weights": {"type": weights}}
        row: tools.Row = {"model": case.name, "calibrated with": case.feed, "activations x weights": name}
        out = folder / f"{number}.onnx"
        try:
            onnxq.quantize(case.model, calib, recipe=recipe, threads=options.threads).save(out)
            row |= reference.distance(out)
            files[name] = out
        except onnxq.OnnxqError as err:  # a model that cannot be executed is a result
            row["note"] = str(err).splitlines()[0][:120]
        row["bytes, ratio to float"] = out.stat().st_size / case.model.stat().st_size if out.exists() else None
        rows.append(row)
    timed = benchmark(
        [case.model, *files.values()],
        calib[:1],
        threads=options.threads,
        rounds=_QUICK_TURNS if options.quick else _TURNS,
    )
    ratios = dict(zip(files, (r.median for r in timed.ratios), strict=True))
    return [row | {"latency, ratio to float": ratios.get(str(row["activations x weights"]))} for row in rows]


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows: list[tools.Row] = []
    for case in cases(options):
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
            rows += measure(case, options, Path(name))
    notes = ["SQNR of the worst output; one sample at a time for latency, models in turn"]
    return [tools.Table("Types of codes", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
