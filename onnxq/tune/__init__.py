"""Search: which layers hurt, and the cheapest recipe that keeps enough accuracy.

from onnxq.tune import Evaluation, tune

tuned = tune("model.onnx", "calib.npz", Evaluation("eval.npz", labels="labels.csv"), "0.5%")
tuned.save("model.int8.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.tune.constraint import Constraint
    from onnxq.tune.evaluation import Evaluation, Metric, Scorer
    from onnxq.tune.ranking import Sensitivity
    from onnxq.tune.sensitivity import rank_layers
    from onnxq.tune.tuning import Tuned, tune

__all__ = ["Constraint", "Evaluation", "Metric", "Scorer", "Sensitivity", "Tuned", "rank_layers", "tune"]

_HOMES = {
    "Constraint": "onnxq.tune.constraint",
    **dict.fromkeys(("Evaluation", "Metric", "Scorer"), "onnxq.tune.evaluation"),
    "Sensitivity": "onnxq.tune.ranking",
    "rank_layers": "onnxq.tune.sensitivity",
    **dict.fromkeys(("Tuned", "tune"), "onnxq.tune.tuning"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxq.tune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
