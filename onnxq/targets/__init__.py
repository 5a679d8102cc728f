"""The backends, each as data: what it executes with codes and how it wants to be told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxq.errors import RecipeError, nearest
from onnxq.targets._base import Limits, Target
from onnxq.targets.ascend import ASCEND
from onnxq.targets.kirin import KIRIN
from onnxq.targets.ort import ORT
from onnxq.targets.qnn import QNN
from onnxq.targets.tensorrt import TENSORRT

__all__ = ["TARGETS", "Limits", "Target", "get_target"]

TARGETS: Mapping[str, Target] = MappingProxyType({t.name: t for t in (ORT, TENSORRT, QNN, ASCEND, KIRIN)})
"""All targets by name."""


def get_target(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        RecipeError: If there is none.
    """
    if name not in TARGETS:
        raise RecipeError(f"unknown target {name!r}{nearest(name, TARGETS)}; known: {', '.join(TARGETS)}")
    return TARGETS[name]
