"""onnxq: quantize exported ONNX models of any framework.

    import onnxq

    result = onnxq.quantize("model.onnx", "calibration.npz")
    result.save("model.int8.onnx")

Names are imported when they are first used, so that ``import onnxq`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from onnxq._version import __version__

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.errors import (
        CalibrationError,
        DataError,
        GraphError,
        ModelError,
        OnnxqError,
        PassError,
        RecipeError,
    )
    from onnxq.graph import GraphModel
    from onnxq.modelio import load_model, save_model
    from onnxq.observers import Observer
    from onnxq.passes._base import Fact, Instrument, Pass, PassManager, PassReport, Skip
    from onnxq.pipeline import Result, build, plan_model, quantize
    from onnxq.plan import Plan
    from onnxq.pruning import Pruned, prune
    from onnxq.recipe import Recipe
    from onnxq.report.debug import write_debug
    from onnxq.report.debug_files import DebugFiles
    from onnxq.spec import PerAxis, PerBlock, PerTensor, QType, QuantParams, QuantSpec
    from onnxq.targets import Target, get_target

__all__ = [
    "CalibrationError",
    "DataError",
    "DebugFiles",
    "Fact",
    "GraphError",
    "GraphModel",
    "Instrument",
    "ModelError",
    "Observer",
    "OnnxqError",
    "Pass",
    "PassError",
    "PassManager",
    "PassReport",
    "PerAxis",
    "PerBlock",
    "PerTensor",
    "Plan",
    "Pruned",
    "QType",
    "QuantContext",
    "QuantParams",
    "QuantSpec",
    "Recipe",
    "RecipeError",
    "Result",
    "Skip",
    "Target",
    "__version__",
    "build",
    "get_target",
    "load_model",
    "plan_model",
    "prune",
    "quantize",
    "save_model",
    "write_debug",
]

_ERRORS = ("CalibrationError", "DataError", "GraphError", "ModelError", "OnnxqError", "PassError", "RecipeError")
_HOMES = {
    **dict.fromkeys(_ERRORS, "onnxq.errors"),
    **dict.fromkeys(("Fact", "Instrument", "Pass", "PassManager", "PassReport", "Skip"), "onnxq.passes._base"),
    **dict.fromkeys(("PerAxis", "PerBlock", "PerTensor", "QType", "QuantParams", "QuantSpec"), "onnxq.spec"),
    **dict.fromkeys(("Result", "build", "plan_model", "quantize"), "onnxq.pipeline"),
    **dict.fromkeys(("Pruned", "prune"), "onnxq.pruning"),
    **dict.fromkeys(("load_model", "save_model"), "onnxq.modelio"),
    **dict.fromkeys(("Target", "get_target"), "onnxq.targets"),
    "Observer": "onnxq.observers",
    "DebugFiles": "onnxq.report.debug_files",
    "write_debug": "onnxq.report.debug",
    "GraphModel": "onnxq.graph",
    "Plan": "onnxq.plan",
    "QuantContext": "onnxq.context",
    "Recipe": "onnxq.recipe",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
