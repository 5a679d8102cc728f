"""Real models: the default recipe keeps their accuracy, and none of them is lost.

The bars are a little lower than what `benchmarks/accuracy.py` shows with all images.
"""

from __future__ import annotations

import functools

import accuracy
import datasets
import numpy as np
import pytest
import tools

import onnxq

pytestmark = pytest.mark.zoo

EVALUATED = 100
CLASSIFIERS = {
    "mobilenetv2-7_refit_head": (datasets.IMAGENET, 29.0, 99.0, 1.0),
    "mobilenetv1_0.25_224": (datasets.MINUS_ONE_TO_ONE, 19.5, 85.0, 3.0),
    "squeezenet1.1": (datasets.IMAGENET, 33.0, 94.0, 2.0),
}
"""Preprocessing; the least SQNR in dB, the least agreement in percent, the largest drop of top-1 in points."""
OTHERS = {
    "ch_PP-OCRv3_det_infer": "text",
    "dtln_model_1": "magnitudes",
    "mlperf_tiny_resnet8_cifar10": "images",
    "silero_vad_16k_op15": "noise",
    "stories260K_llama": "texts",
    "yunet_n_640_640": "images",
}
"""Which of the benchmarks' feeds to take."""


@functools.cache
def pictures(zoo, split, config):
    return datasets.images(zoo, split, config, EVALUATED)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_keep_their_accuracy(name, zoo, tmp_path):
    config, sqnr, agreement, drop = CLASSIFIERS[name]
    model = zoo / "models" / f"{name}.onnx"
    result = onnxq.quantize(model, {"input": pictures(zoo, "calib", config)[0]})
    result.save(tmp_path / "q.onnx")
    left = {d.op_type for d in result.plan.left_float()}
    assert not left & {"Conv", "Gemm", "MatMul"}
    pixels, labels = pictures(zoo, "eval", config)
    row = accuracy.Float(model, datasets.cut("input", pixels, 10), labels, 2).distance(tmp_path / "q.onnx")
    assert row["SQNR dB"] >= sqnr
    assert row["agree %"] >= agreement
    assert row["drop"] <= drop


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_get_through(name, zoo, tmp_path):
    options = tools.Options(zoo=zoo, quick=True)
    case = next(c for c in datasets.cases(options) if c.name == name and OTHERS[name] in c.feed)
    result = onnxq.quantize(case.model, case.calib())
    result.save(tmp_path / "q.onnx")
    assert result.changed
    feed = case.evaluation()[0][0]
    before, after = (accuracy.open_session(path, 2) for path in (case.model, tmp_path / "q.onnx"))
    assert [(i.name, i.type, i.shape) for i in after.get_inputs()] == [
        (i.name, i.type, i.shape) for i in before.get_inputs()
    ]
    assert [o.name for o in after.get_outputs()] == [o.name for o in before.get_outputs()]
    for expected, found in zip(before.run(None, feed), after.run(None, feed), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
def test_everything_left_float_has_a_reason(name, zoo):
    result = onnxq.plan_model(zoo / "models" / f"{name}.onnx")
    assert all(d.reason for d in result.plan.left_float())
    assert result.plan.counts()["quantized"] > 0


def test_the_zoo_is_what_the_tests_expect(zoo):
    assert {p.stem for p in (zoo / "models").glob("*.onnx")} == {*CLASSIFIERS, *OTHERS}
