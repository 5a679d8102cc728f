"""How far quantized models are from the float ones: onnxq's default recipe beside onnxruntime.quantization.

Both get the same samples to calibrate; other samples evaluate. SQNR is that of the worst output, over
all samples; agreement is the share of equal first classes. Models are run by ONNX Runtime with all its
optimizations, and once more exactly as they are written.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import peer
import tools
from datasets import Case, Feed, Labels, cases

import onnxq

OUTRIGHT = {"session.disable_quant_qdq": "1"}
SCORES = ("logits", "probs")
"""Names of outputs whose last axis is one of classes."""


class Float:
    """The float model's outputs, and how far others are from them."""

    def __init__(self, model: Path, feeds: list[Feed], labels: Labels, threads: int) -> None:
        self._feeds = feeds
        self._labels = labels
        self._threads = threads
        self._session = open_session(model, threads)
        self.names = [o.name for o in self._session.get_outputs()]

    def distance(self, model: Path, config: dict[str, str] | None = None) -> tools.Row:
        """SQNR, agreement and accuracy of a model."""
        session = open_session(model, self._threads, config)
        power, noise = np.zeros(len(self.names)), np.zeros(len(self.names))
        chosen: list[np.ndarray] = []
        wanted: list[np.ndarray] = []
        for feed in self._feeds:
            reference, found = self._session.run(self.names, feed), session.run(self.names, feed)
            for k, (a, b) in enumerate(zip(reference, found, strict=True)):
                power[k] += np.square(a, dtype=np.float64).sum()
                noise[k] += np.square(a.astype(np.float64) - b).sum()
            if self.names[0] in SCORES:
                wanted.append(reference[0].argmax(-1).reshape(-1))
                chosen.append(found[0].argmax(-1).reshape(-1))
        row: tools.Row = {"SQNR dB": min(_db(p, n) for p, n in zip(power, noise, strict=True) if p > 0)}
        if chosen:
            right, mine = np.concatenate(wanted), np.concatenate(chosen)
            row["agree %"] = 100.0 * float((right == mine).mean())
            if self._labels is not None:
                before, after = (100.0 * float((x == self._labels).mean()) for x in (right, mine))
                row |= {"float top-1": before, "top-1": after, "drop": before - after}
        return row


def _db(power: float, noise: float) -> float:
    if math.isnan(noise):
        return -math.inf
    return 10.0 * math.log10(power / noise) if noise else math.inf


def open_session(model: Path, threads: int, config: dict[str, str] | None = None) -> ort.InferenceSession:
    """A session on the CPU with all optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def measure(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """One row for each quantizer."""
    calib = case.calib()
    reference = Float(case.model, *case.evaluation(), options.threads)

    def ours(out: Path) -> None:
        onnxq.quantize(case.model, calib, threads=options.threads).save(out)

    def theirs(out: Path) -> None:
        peer.quantize(case.model, out, calib)

    rows = []
    for name, quantizer in (("onnxq", ours), ("onnxruntime", theirs)):
        row: tools.Row = {"model": case.name, "calibrated with": case.feed, "by": name}
        rows.append(row | _attempt(quantizer, folder / f"{name}.onnx", reference))
    return rows


def _attempt(quantizer: Callable[[Path], None], out: Path, reference: Float) -> tools.Row:
    try:
        quantizer(out)
        row = reference.distance(out)
        written = reference.distance(out, OUTRIGHT)["SQNR dB"]
    except Exception as err:  # noqa: BLE001 - whatever a quantizer or its model fails with is the result
        return {"note": f"failed: {(str(err).strip().splitlines() or [type(err).__name__])[0][:160]}"}
    if abs(float(written or 0.0) - float(row["SQNR dB"] or 0.0)) > 1.0:
        row["as written"] = written
    return row


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows: list[tools.Row] = []
    for case in cases(options):
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
            rows += measure(case, options, Path(name))
    notes = [
        "SQNR of the worst output; 'as written': without fused integer kernels, where it differs by more than 1 dB",
        "evaluated on other samples than calibrated with; onnxruntime: quantize_static, QDQ, per channel, min-max",
    ]
    return [tools.Table("Accuracy", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
