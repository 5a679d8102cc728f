"""The exceptions onnxq raises for anything a user can mend.

Every message says where the problem is, what was found and what to do about it.
The command line turns any of these into one line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnnxqError(Exception):
    """Base of every error that is about the user's input and not a defect of onnxq."""


class ModelError(OnnxqError):
    """A model file cannot be read, written or is not valid ONNX."""


class GraphError(OnnxqError):
    """A graph holds something onnxq cannot handle, or a transformation broke it."""


class RecipeError(OnnxqError):
    """A recipe, a configuration file or a list of passes is wrong."""


class DataError(OnnxqError):
    """Calibration or evaluation data do not fit the model."""


class CalibrationError(OnnxqError):
    """Calibration cannot give usable statistics (NaN, infinity, no samples)."""


class RecordError(OnnxqError):
    """A record of scales and zero points is wrong, or does not fit the model."""


class TrainingError(OnnxqError):
    """Training cannot start or go on: no training runtime, a worker that died, artifacts that do not fit."""


class ManifestError(OnnxqError):
    """The manifest of a zoo of models, or its baseline, is wrong."""


class PassError(OnnxqError):
    """A pass failed; the message names it and its position."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return a hint such as ``; did you mean 'conv1', 'conv2'?``, or an empty string.

    Args:
        name: What the user wrote.
        known: What would have been understood.
        count: How many candidates to name at the most.
    """
    matches = difflib.get_close_matches(name, sorted(set(known)), n=count, cutoff=0.4)
    if not matches:
        return ""
    return "; did you mean " + ", ".join(repr(m) for m in matches) + "?"
