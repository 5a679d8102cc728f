"""The training runtime for the tests: installed once per machine, in the user's cache."""

import pytest

from onnxq.errors import TrainingError
from onnxq.qat.overlay import find_overlay, install_overlay


def training_runtime():
    """The overlay; the test is skipped where none can be had."""
    try:
        return find_overlay()
    except TrainingError:
        try:
            return install_overlay()
        except TrainingError as err:
            pytest.skip(f"no training runtime: {err}")
