"""onnxruntime.quantization as its documentation recommends it: pre-processed, Q/DQ, per channel, uint8 x int8."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Feed
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
CALIBRATED = tuple({*QLinearOpsRegistry, *QDQRegistry})
"""What quantize_static calibrates by default."""


class Reader(CalibrationDataReader):
    """Gives feeds one after the other."""

    def __init__(self, feeds: list[Feed] | Iterator[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next feed, or None."""
        return next(self._feeds, None)


def preprocess(model: Path, out: Path) -> None:
    """Fuse and infer shapes; without symbolic shapes where their inference fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # imports sympy

    logging.disable(logging.WARNING)
    model, out, here = model.resolve(), out.resolve(), Path.cwd()
    os.chdir(out.parent)  # where it fails it leaves files behind in the working folder
    try:
        quant_pre_process(str(model), str(out), skip_symbolic_shape=False)
    except Exception:  # noqa: BLE001 - it raises bare Exception
        quant_pre_process(str(model), str(out), skip_symbolic_shape=True)
    finally:
        os.chdir(here)


def quantize(model: Path, out: Path, feeds: list[Feed] | Iterator[Feed], method: str = "minmax") -> None:
    """Pre-process and quantize a model."""
    prepared = out.with_suffix(".prepared.onnx")
    preprocess(model, prepared)
    quantize_static(
        str(prepared), str(out), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=METHODS[method],
    )  # fmt: skip


def calibrate(prepared: Path, scratch: Path, feeds: list[Feed], method: str) -> None:
    """What quantize_static does between pre-processing and inserting nodes."""
    calibrator = create_calibrator(str(prepared), CALIBRATED, str(scratch), METHODS[method])
    calibrator.collect_data(Reader(feeds))
    calibrator.compute_data()
