"""Models of onnx.backend.test: each is quantized within the bound, or passed through with reasons.

A sample that is there on disk or quick to make; `benchmarks/backend_sweep.py` goes over all of them and holds
the bound: an SQNR of 20 dB or a largest error of 5 % of the range, on the data of the calibration.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

import onnxq
from onnxq.errors import ModelError
from tests.graphs import build, normal

OPERATORS = (
    "conv",
    "convtranspose",
    "gemm",
    "matmul",
    "gather",
    "gru",
    "lstm",
    "layernormalization",
)
QUANTIZED = {
    "node": {
        "test_basic_conv_with_padding+bound", "test_conv_with_autopad_same+bound",
        "test_conv_with_strides_padding+bound",
        "test_gemm_all_attributes+bound", "test_gemm_transposeA+bound", "test_gemm_alpha+bound",
        "test_matmul_2d", "test_matmul_2d+bound", "test_matmul_3d",
    },
    "pytorch-converted": {"test_Conv1d_groups", "test_Conv2d_depthwise_padded", "test_Conv3d_dilated_strided",
                          "test_Embedding", "test_Linear", "test_Linear_no_bias"},
    "simple": set(),
}  # fmt: skip
"""Some that must not merely be passed through."""


@cache
def sweep() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "backend_sweep.py"
    spec = importlib.util.spec_from_file_location("backend_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def outcomes(cases: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the models' own code and overflows in them
        return {case.name: sweep().sweep(case) for case in cases}


def assert_fine(found: dict[str, Any], kind: str) -> None:
    wrong = {n: o.detail for n, o in found.items() if o.kind in ("crashed", "out of bounds", "no reason", "refused")}
    assert wrong == {}
    assert {n for n in QUANTIZED[kind] if found[n].kind != "quantized"} == set()


@pytest.mark.parametrize("kind", ["simple", "pytorch-converted"])
def test_models_that_are_on_disk(kind: str) -> None:
    found = outcomes(sweep().cases([kind]))
    assert len(found) >= 20
    assert_fine(found, kind)


def test_models_of_single_operators() -> None:
    """Only the test cases of the operators that matter most: making all of them takes a quarter of a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OPERATORS:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
        from onnx.backend.test.case.node import _NodeTestCases
    found = outcomes(c for test in list(_NodeTestCases) for c in _with_twin(test))
    assert len(found) >= 40
    assert_fine(found, "node")


def _with_twin(test: Any) -> list[Any]:
    case = sweep().case_of(test)
    twin = sweep().bind(case)
    return [c for c in (case, twin) if c is not None]


def test_a_model_with_a_sequence_as_input_is_passed_through_or_says_what_is_missing() -> None:
    text = "g (seq(float[N,4]) s, int64 i) => (float[N,3] y) {{ a = SequenceAt(s, i) y = {} }}"
    plain = build(text.format("Exp(a)").replace("float[N,3]", "float[N,4]"), check=False)
    result = onnxq.quantize(plain, recipe={"calibration": {"random": True}})
    assert not result.changed
    assert len(result.plan.left_float()) == 2
    with pytest.raises(ModelError, match="'s' is no plain tensor"):
        onnxq.quantize(
            build(text.format("MatMul(a, W)"), check=False, W=normal(4, 3)), recipe={"calibration": {"random": True}}
        )


def test_the_bound_is_a_bound() -> None:
    """A model that is wrong is found out: the sweep's own check."""
    case = sweep().Case("c", build("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, W) }", W=normal(4, 3)), None)
    other = build("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, W) }", W=normal(4, 3) * 1.2)
    make = sweep().make_session
    feeds, random = sweep()._feeds(case, make(case.model))
    assert random
    worst, problem = sweep()._compare(make(case.model), make(other), feeds)
    assert worst == pytest.approx(14, abs=0.1)
    assert "14.0 dB" in problem
    assert sweep()._compare(make(case.model), make(case.model), feeds) == (float("inf"), "")
    assert isinstance(case.model, onnx.ModelProto)
