"""The training runtime as the worker sees it: the only module that imports it, and only in the worker.

The package's own ``__init__`` imports torch for a part that is not needed here, so it is passed by.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
from onnxruntime.capi import _pybind_state as capi

VERSION: str = onnxruntime.__version__

NEWEST_IR = 10
"""The newest version of the file format it reads."""

NEWEST_OPSET = 21
"""The newest version of the default operator set it knows."""


def session_options(threads: int) -> Any:  # noqa: ANN401 - of a package without types
    """Options of a session with a number of threads; with one, every sum is taken in the same order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def session(model: bytes, threads: int) -> Any:  # noqa: ANN401 - of a package without types
    """A session for inference."""
    return onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])


@cache
def api() -> Any:  # noqa: ANN401 - of a package without types
    """The module ``onnxruntime.training.api``."""
    _pass_by_torch()
    from onnxruntime.training import api as module

    return module


@cache
def artifacts() -> Any:  # noqa: ANN401 - of a package without types
    """The module ``onnxruntime.training.artifacts``."""
    _pass_by_torch()
    from onnxruntime.training import artifacts as module

    return module


@cache
def optimizers() -> Any:  # noqa: ANN401 - of a package without types
    """The module ``onnxruntime.training.onnxblock.optim``."""
    _pass_by_torch()
    from onnxruntime.training.onnxblock import optim as module

    return module


def gradient_graph(model: bytes, names: list[str], output: str) -> bytes:
    """The model with one more output for each of some of its inputs: the gradient of an output by it.

    Args:
        model: The model.
        names: Inputs of it.
        output: The scalar that is derived.
    """
    options = session_options(1)
    optimized = capi.get_optimized_model(model, set(names), options)
    builder = capi.GradientGraphBuilder(optimized, {output}, set(names), output, options)
    builder.build()
    result: bytes = builder.get_model()
    return result


def _pass_by_torch() -> None:
    if "onnxruntime.training" in sys.modules:
        return
    package = ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    onnxruntime.training = package
