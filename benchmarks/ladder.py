"""How far each step towards better weights gets, alone and together: MobileNetV2, W8A8 and W4A8.

Rungs from plain rounding to AdaRound: scales by least squares, channels scaled in front of depthwise convolutions,
cross-layer equalization (with ReLU6 turned into Relu, as data-free quantization does), bias correction, AdaRound.
Each is measured with one scale for a weight and with one for each of its output channels. Bias correction is not
tried on top of AdaRound, which has the float model's outputs in view: there it changes nothing.

Published for orientation, top-1 of ImageNet with one scale a weight (float 71.7): data-free quantization W8A8 71.2;
AdaRound with equalization W4A8 69.3 (Nagel et al., "Data-Free Quantization", 2019; "Up or Down?", 2020). The zoo's
MobileNetV2 has a head fitted to these images, so what counts is the drop.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tools
from accuracy import OUTRIGHT, Float
from datasets import Case, cases

import onnxq

PREFERRED = ("mobilenetv2-7_refit_head", "digits_mobilenet")
GRANULARITIES = ("per_tensor", "per_axis")
WIDTHS = (8, 4)
SPREAD = {"equalize": {"depthwise": True}}
PLAIN = {"equalize": {"depthwise": False}}
EVEN = {"equalize": {"enabled": True, "depthwise": False, "drop_clips": True}}
BOTH = {"equalize": {"enabled": True, "depthwise": True, "drop_clips": True}}
BIAS = {"refine": ["bias_correction"]}
RAW = {"refine": []}


@dataclass(frozen=True)
class Rung:
    """One way to quantize weights.

    Attributes:
        name: What the table calls it.
        method: How scales or codes of weights are chosen.
        steps: What else is done, as parts of a recipe.
        slow: It takes minutes.
    """

    name: str
    method: str | dict[str, Any]
    steps: dict[str, Any] = field(default_factory=dict)
    slow: bool = False

    def recipe(self, bits: int, granularity: str, *, quick: bool) -> dict[str, Any]:
        """The recipe."""
        method = self.method
        if quick and self.slow and isinstance(method, dict):
            method = {**method, "num_iteration": 200, "samples": 8}
        weights = {"bits": bits, "granularity": granularity, "method": method}
        return {"weights": weights, **self.steps}


ADAROUND = {"name": "adaround", "num_iteration": 1000, "samples": 32}
"""A tenth of the default steps and a quarter of its samples: minutes instead of an hour on two cores."""
LADDER = (
    Rung("nearest", "absmax", PLAIN | RAW),
    Rung("scales by MSE", "mse", PLAIN | RAW),
    Rung("MSE + bias correction", "mse", PLAIN | BIAS),
    Rung("MSE + equalization", "mse", EVEN | RAW),
    Rung("MSE + equalization + bias correction", "mse", EVEN | BIAS),
    Rung("MSE + depthwise channels + bias correction", "mse", SPREAD | BIAS),
    Rung("MSE + both + bias correction", "mse", BOTH | BIAS),
    Rung("AdaRound", ADAROUND, PLAIN | RAW, slow=True),
    Rung("AdaRound + depthwise channels", ADAROUND, SPREAD | RAW, slow=True),
    Rung("AdaRound + equalization", ADAROUND, EVEN | RAW, slow=True),
)


def measure(
    rung: Rung, case: Case, reference: Float, calib: list, bits: int, granularity: str, options: tools.Options
) -> tools.Row:
    """One row."""
    row: tools.Row = {"bits": f"W{bits}A8", "scales": granularity, "steps": rung.name}
    recipe = rung.recipe(bits, granularity, quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        out = Path(name) / "model.onnx"
        start = time.perf_counter()
        try:
            onnxq.quantize(case.model, calib, recipe=recipe, threads=options.threads).save(out)
        except onnxq.OnnxqError as err:
            return row | {"note": str(err)[:160]}
        row["seconds"] = time.perf_counter() - start
        found = reference.distance(out, OUTRIGHT)
    return row | {key: found[key] for key in ("top-1", "drop", "agree %", "SQNR dB") if key in found}


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all rungs."""
    known = {case.name: case for case in cases(options, classifiers_only=True)}
    case = next((known[name] for name in PREFERRED if name in known), None)
    if case is None:
        return []
    feeds, labels = case.evaluation()
    reference = Float(case.model, feeds, labels, options.threads)
    calib = case.calib()
    rows = [
        measure(rung, case, reference, calib, bits, granularity, options)
        for bits in WIDTHS
        for granularity in GRANULARITIES
        for rung in LADDER
    ]
    count = sum(len(next(iter(feed.values()))) for feed in feeds)
    notes = [
        f"{case.name}: calibrated with {case.feed}, evaluated on {count} others",
        "activations in 8 bits, ranges of the default recipe; run as written, so that no kernel's rounding counts",
        f"AdaRound with {ADAROUND['num_iteration']} steps over {ADAROUND['samples']} samples",
    ]
    return [tools.Table("AdaRound, bias correction, equalization", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
