"""Conversion to a newer operator set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from onnxq._graph.view import GraphView


def converted(view: GraphView, version: int) -> onnx.ModelProto:
    """The model's skeleton at another operator set."""
    raise NotImplementedError
