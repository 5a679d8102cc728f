"""Weight-only quantization: size, accuracy, load time and latency of every width, storages, and mixed widths.

One image classifier: MobileNetV2 of the zoo, or the bundled one. Widths from 1 to 16 bits are stored packed. Sizes are
told apart: codes of weights, numbers of channels (scales, zero points, means), what stays float (biases), and the graph
with its names. `onnxq pack` then gives the size for shipping, and what the entropy of the codes allows.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import latency
import numpy as np
import onnx
import tools
from accuracy import open_session
from datasets import Case, Feed, cases
from onnx import numpy_helper

import onnxq
from onnxq.packing import pack, unpack

WIDTHS = tuple(range(1, 17))
STORAGES = ("packed", "native", "blocks", "rounded")
PREFERRED = ("mobilenetv2-7_refit_head", "digits_mobilenet")
NUMBERS = ("_scale", "_zero_point", "_mean", "_scales", "_zero_points")
CODES = ("_packed", "_packed8", "_packed4", "_packed2", "_packed1", "_quantized", "_blocks", "_rounded")
FEW = 20
"""Samples that a search compares outputs on."""
TURN = 2.0
"""Seconds that the latency of one model is measured for, in turn with the float one."""


class Reference:
    """The float model's outputs, and how near those of others are."""

    def __init__(self, case: Case, threads: int, *, few: bool = False) -> None:
        feeds, self._labels = case.evaluation()
        self._feeds: list[Feed] = feeds[: max(1, FEW // len(next(iter(feeds[0].values()))))] if few else feeds
        self._threads = threads
        self._outputs = self._run(case.model)

    def _run(self, model: Path) -> np.ndarray:
        session = open_session(model, self._threads)
        found = [session.run(None, feed)[0].astype(np.float64) for feed in self._feeds]
        return np.concatenate([x.reshape(len(x), -1) for x in found])

    def cosine(self, model: Path) -> float:
        """The mean cosine of outputs."""
        found = self._run(model)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(self._outputs, axis=1)
        return float(((found * self._outputs).sum(1) / np.maximum(norms, 1e-30)).mean())

    def distance(self, model: Path) -> tools.Row:
        """SQNR, agreement of the first class and accuracy."""
        found, wanted = self._run(model), self._outputs
        noise = max(float(np.square(found - wanted).sum()), 1e-30)
        row: tools.Row = {
            "SQNR dB": 10 * float(np.log10(np.square(wanted).sum() / noise)),
            "agree %": 100 * float((found.argmax(1) == wanted.argmax(1)).mean()),
        }
        if self._labels is not None:
            labels = self._labels[: len(found)]
            row["top-1"] = 100 * float((found.argmax(1) == labels).mean())
            row["drop"] = 100 * float((wanted.argmax(1) == labels).mean()) - float(row["top-1"] or 0)
        return row


def recipe(bits: int, storage: str = "packed", **scheme: object) -> dict[str, object]:
    """A recipe for weights alone."""
    return {"scheme": {"kind": "weight_only", "storage": storage, **scheme}, "weights": {"bits": bits}}


def sizes(model: Path) -> dict[str, int]:
    """Bytes of a model by what they are."""
    found = {"codes": 0, "numbers": 0, "float": 0}
    for tensor in onnx.load(model).graph.initializer:
        part = "codes" if tensor.name.endswith(CODES) else "numbers" if tensor.name.endswith(NUMBERS) else "float"
        found[part] += len(tensor.raw_data)
    total = model.stat().st_size
    return {"file": total, **found, "graph": total - sum(found.values())}


def load_times(models: Mapping[str, Path], rounds: int, threads: int) -> dict[str, float]:
    """Milliseconds to make a session, the median of models that take turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, path in models.items():
            start = time.perf_counter()
            open_session(path, threads)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def speed(models: Mapping[str, Path], options: tools.Options) -> list[tools.Row]:
    """Load time and latency of models beside the first one."""
    loads = load_times(models, 1 if options.quick else max(3, options.rounds), options.threads)
    first, *others = models
    rows = []
    for name in others:
        pair = {"float": str(models[first]), "onnxq": str(models[name])}
        found = tools.in_child(
            latency.alternated, models=pair, threads=options.threads, seconds=0.3 if options.quick else TURN
        )
        rows.append(
            {"load, ms": loads[name], "load / float": loads[name] / loads[first], "run / float": found["onnxq / float"]}
        )
    return rows


def packed(model: Path, folder: Path) -> tools.Row:
    """The size for shipping, after a check that unpacking gives the same bytes."""
    report = pack(model, folder / "model.packed")
    unpack(folder / "model.packed", folder / "back.onnx")
    if (folder / "back.onnx").read_bytes() != model.read_bytes():
        raise AssertionError("packing did not give the same bytes back")
    total = report.total()
    return {
        "shipped, kB": report.after / 1000,
        "ratio": report.ratio,
        "entropy, kB": total.bound / 1000,
        "coded / entropy": total.after / max(total.bound, 1.0),
    }


def widths(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """A row for each width."""
    reference = Reference(case, options.threads)
    models = {"float": case.model}
    rows: list[tools.Row] = []
    floats = sum(4 * math.prod(t.dims) for t in onnx.load(case.model).graph.initializer if len(t.dims) > 1)
    for bits in WIDTHS[::5] if options.quick else WIDTHS:
        path = folder / f"{bits}.onnx"
        onnxq.quantize(case.model, recipe=recipe(bits), threads=options.threads).save(path)
        models[str(bits)] = path
        found, share = sizes(path), bits / 32 * floats
        row: tools.Row = {"bits": bits, "file, kB": found["file"] / 1000}
        row |= {f"{part}, kB": found[part] / 1000 for part in ("codes", "numbers", "float", "graph")}
        row["codes over b/32, %"] = 100 * (found["codes"] / share - 1)
        row["with numbers, %"] = 100 * ((found["codes"] + found["numbers"]) / share - 1)
        row["file, %"] = 100 * (found["file"] / share - 1)
        rows.append(row | reference.distance(path) | packed(path, folder))
    return [row | fast for row, fast in zip(rows, speed(models, options), strict=True)]


def storages(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """A row for each storage of 8 and of 4 bits."""
    reference = Reference(case, options.threads)
    models = {"float": case.model}
    rows: list[tools.Row] = []
    for bits in (8, 4):
        for storage in STORAGES:
            path = folder / f"{storage}{bits}.onnx"
            onnxq.quantize(case.model, recipe=recipe(bits, storage), threads=options.threads).save(path)
            models[f"{storage}{bits}"] = path
            row: tools.Row = {"storage": storage, "bits": bits, "file, kB": path.stat().st_size / 1000}
            rows.append(row | reference.distance(path))
    return [row | fast for row, fast in zip(rows, speed(models, options), strict=True)]


def mixed(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """Mixed widths of at least the mean cosine that 8 and 6 bits have, beside these: the largest step of a series."""
    few, reference = Reference(case, options.threads, few=True), Reference(case, options.threads)
    rows: list[tools.Row] = []
    for bits in (8, 6):
        fixed = folder / "fixed.onnx"
        onnxq.quantize(case.model, recipe=recipe(bits), threads=options.threads).save(fixed)
        wanted = few.cosine(fixed)
        scales = [0.05 * 0.85**k for k in range(0, 30, 10 if options.quick else 1)]
        for scale in scales:  # outputs do not get nearer with every smaller step, so each is tried
            path = _mixed(case, scale, folder / "mixed.onnx", options)
            if few.cosine(path) >= wanted:
                break
        for name, model in ((f"{bits} bits", fixed), (f"init_scale {scale:.4f}", path)):
            row: tools.Row = {"weights": name, "cosine": f"{few.cosine(model):.6f}"}
            row["file, kB"] = model.stat().st_size / 1000
            rows.append(row | packed(model, folder) | reference.distance(model))
        rows[-1] |= _relative_errors(case, scale, folder, options)
    return rows


def _mixed(case: Case, scale: float, path: Path, options: tools.Options, storage: str = "packed") -> Path:
    wanted = recipe(8, storage, mixed={"init_scale": scale})
    wanted.pop("weights")
    onnxq.quantize(case.model, recipe=wanted, threads=options.threads).save(path)
    return path


def _relative_errors(case: Case, scale: float, folder: Path, options: tools.Options) -> tools.Row:
    """The relative errors of the weights over the one wanted, the smallest and the largest."""
    rounded = onnx.load(_mixed(case, scale, folder / "rounded.onnx", options, "rounded"))
    floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(case.model).graph.initializer}
    errors = []
    for tensor in rounded.graph.initializer:
        weight = floats.get(tensor.name.removesuffix("_rounded"))
        if tensor.name.endswith("_rounded") and weight is not None:
            difference = numpy_helper.to_array(tensor).astype(np.float64) - weight
            errors.append(float(np.linalg.norm(difference) / np.linalg.norm(weight)) / scale)
    return {"error / wanted": f"{min(errors):.3f} to {max(errors):.3f}"} if errors else {}


def run(options: tools.Options) -> list[tools.Table]:
    """The four tables."""
    found = {case.name: case for case in cases(options, classifiers_only=True)}
    case = next((found[name] for name in PREFERRED if name in found), None)
    if case is None:
        return []
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        folder = Path(name)
        size, use = _split(widths(case, options, folder))
        kept, wider = storages(case, options, folder), mixed(case, options, folder)
    over = "over b/32: beside the bytes of the float weights times b/32: codes, also with the numbers of channels, file"
    return [
        tools.Table(f"Sizes of packed weights, {case.name}", size, [over]),
        tools.Table(
            f"Use of packed weights, {case.name}", use, ["load: making a session; run: one inference, in turns"]
        ),
        tools.Table(f"Storages, {case.name}", kept),
        tools.Table(
            f"Mixed widths at equal cosine, {case.name}",
            wider,
            ["error / wanted: relative error of each weight over init_scale, smallest to largest"],
        ),
    ]


def _split(rows: list[tools.Row]) -> tuple[list[tools.Row], list[tools.Row]]:
    """What files take, and what models do."""
    use = ("SQNR dB", "agree %", "top-1", "drop", "load, ms", "load / float", "run / float")
    sizes = [{key: value for key, value in row.items() if key not in use} for row in rows]
    return sizes, [{key: row.get(key) for key in ("bits", *use)} for row in rows]


if __name__ == "__main__":
    tools.main([run], __doc__)
