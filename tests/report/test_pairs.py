"""Tensors whose channels a pass has scaled are not compared; all others are."""

from pathlib import Path

import onnxq
from onnxq.report.pairs import find_pairs, rescaled_tensors

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "digits_mobilenet.onnx"
DATA = ROOT / "models" / "data" / "digits_calib.npz"


def names(*, depthwise: bool) -> tuple[set[str], frozenset[str]]:
    recipe = {"equalize": {"depthwise": depthwise}, "refine": []}
    quantized = onnxq.quantize(MODEL, DATA, recipe=recipe).graph
    pairs = find_pairs(onnxq.load_model(MODEL), quantized)
    return {pair.reference for pair in pairs}, rescaled_tensors(quantized)


def test_only_scaled_tensors_are_left_out() -> None:
    compared, rescaled = names(depthwise=True)
    all_compared, none = names(depthwise=False)
    assert none == frozenset()
    assert "block1/expand/relu6/out" in rescaled
    assert all_compared - compared == rescaled & all_compared
    assert "logits" in compared


def test_metadata_of_somebody_else() -> None:
    graph = onnxq.load_model(MODEL)
    for text in ("", "{", "3", '{"a": 1}', "[1, 2]"):
        graph.metadata["onnxq.rescaled_tensors"] = text
        assert rescaled_tensors(graph) == frozenset()
