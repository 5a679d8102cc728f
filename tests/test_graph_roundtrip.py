"""A model that nobody edited comes out as it went in, to the last byte, whatever is in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
from onnx.backend.test.case.node import collect_testcases

from onnxq import modelio
from onnxq.graph import GraphModel

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted([*DATA.glob("simple/*/model.onnx"), *DATA.glob("pytorch-*/*/model.onnx"), *DATA.glob("light/*.onnx")])


def assert_unchanged(model: onnx.ModelProto) -> None:
    graph = GraphModel.from_proto(model)
    expected = model.SerializeToString(deterministic=True)
    assert graph.to_proto().SerializeToString(deterministic=True) == expected
    assert graph.copy().to_proto().SerializeToString(deterministic=True) == expected
    assert graph.sweep() >= 0


@pytest.mark.skipif(not FILES, reason="this onnx comes without its test data")
def test_the_models_onnx_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelio, "OLDEST_OPSET", 1)
    for path in FILES:
        model = onnx.load(path)
        if not model.functions:
            assert_unchanged(model)
    assert len(FILES) > 50


@pytest.mark.slow
def test_the_models_of_onnxs_operator_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelio, "OLDEST_OPSET", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [case.model for case in collect_testcases(None) if case.model is not None]
    for model in models:
        if not model.functions:
            assert_unchanged(model)
    assert len(models) > 1000
