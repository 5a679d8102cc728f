"""The sample configurations of AMCT's manual drive a full run; their placeholders stand for names of the model."""

from pathlib import Path

import pytest

import onnxq
from onnxq.dialects.amct.job import load_config
from tests.dialects.amct import configs

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize(
    ("sample", "quantized", "muls"),
    [("QUANT", 8, 8), ("HFMG", 9, 0), ("DMQ_BALANCER", 8, 8), ("ADA_ROUND", 9, 0)],
)
def test_a_sample_quantizes_a_bundled_model(tmp_path, sample, quantized, muls):
    names = {"Opname": "stem/conv", "Optype": "AvgPool2d", "num_iteration : 10000": "num_iteration : 20"}
    text = configs.broken(getattr(configs, sample))
    for placeholder, name in names.items():
        text = text.replace(placeholder, name)
    (tmp_path / "quant.cfg").write_text(text)
    job = load_config(tmp_path / "quant.cfg", MODELS / "digits_cnn.onnx")
    samples = job.samples(16)
    recipe = job.recipe.replace(calibration=job.recipe.calibration.replace(samples=samples))
    result = onnxq.quantize(MODELS / "digits_cnn.onnx", MODELS / "data" / "digits_calib.npz", recipe=recipe)
    assert result.samples == samples == 16 * (1 if sample == "ADA_ROUND" else 2)
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.count("AscendDequant") == quantized == sum(s.quant_enable for s in job.settings.values())
    assert ops.count("Mul") == muls


def test_six_bits_of_the_sample_reach_the_weights(tmp_path):
    text = configs.broken(configs.QUANT).replace("Opname", "stem/conv").replace("Optype", "AvgPool2d")
    (tmp_path / "quant.cfg").write_text(text)
    job = load_config(tmp_path / "quant.cfg", MODELS / "digits_cnn.onnx")
    plan = onnxq.plan_model(MODELS / "digits_cnn.onnx", recipe=job.recipe).plan
    bits = {weight.node: weight.spec.bits for weight in plan.weights}
    assert bits.pop("head") == 8
    assert set(bits.values()) == {6}
    assert "stem/conv" not in bits
