"""The bundled models and their data."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODELS = Path(__file__).resolve().parents[1] / "models"
DATA = MODELS / "data"
FILES = sorted(MODELS.glob("*.onnx"))


def name_of(path: Path) -> str:
    """The model of a file, whatever its opset."""
    return path.stem.partition("_opset")[0]


FEED_FORWARD = [path for path in FILES if name_of(path) in ("digits_cnn", "digits_mobilenet", "digits_transformer")]
"""Classifiers made of layers that every target quantizes."""


def data_of(path: Path) -> str:
    """What the files of a model's data begin with."""
    name = name_of(path)
    return name.replace("_decoder", "") if name.startswith("sketch_") else name.partition("_")[0]


def samples(path: Path, part: str = "calib", count: int | None = None) -> dict[str, NDArray[Any]]:
    """The first samples of a model's data, by input."""
    with np.load(DATA / f"{data_of(path)}_{part}.npz", allow_pickle=False) as arrays:
        return {name: arrays[name][:count] for name in arrays.files}


def labels_of(path: Path) -> NDArray[Any]:
    """The labels of a model's test data."""
    return np.asarray(np.load(DATA / f"{data_of(path)}_test_labels.npy", allow_pickle=False))


@cache
def metrics() -> ModuleType:
    """models/metrics.py."""
    spec = importlib.util.spec_from_file_location("bundled_metrics", MODELS / "metrics.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
