"""AMCT's calls from beginning to end: the manual's sample configurations, records, the search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.ascend import simulate_model
from onnxq.dialects import amct
from onnxq.errors import CalibrationError, ModelError, RecipeError, RecordError
from tests.dialects.amct.configs import ADA_ROUND, DMQ_BALANCER, HFMG, QUANT, broken
from tests.graphs import build

MODELS = Path(__file__).resolve().parents[3] / "models"
CNN = MODELS / "digits_cnn.onnx"
TRANSFORMER = MODELS / "digits_transformer.onnx"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.load(MODELS / "data" / "digits_calib.npz")["image"]


def named(text: str, layer: str, op: str) -> str:
    """A sample with names of a model in the place of its placeholders, and few steps where it learns."""
    text = broken(text).replace('"Opname"', f'"{layer}"').replace('"Optype"', f'"{op}"')
    return text.replace("num_iteration : 10000", "num_iteration : 200")


def calibrate(config: Path, model: Path, folder: Path, images: np.ndarray) -> None:
    run = amct.quantize_model(config, model, folder / "modified.onnx", folder / "record.txt")
    for start in range(0, 1000, 16):
        if run.finished:
            break
        run.run(None, {"image": images[start : start + 16]})
    run.require_finished()
    amct.save_model(folder / "modified.onnx", folder / "record.txt", folder / "net")


def sqnr(model: Path, other: Path | onnx.ModelProto, images: np.ndarray) -> float:
    content = other.SerializeToString() if isinstance(other, onnx.ModelProto) else str(other)
    a, b = (ort.InferenceSession(m).run(None, {"image": images})[0] for m in (str(model), content))
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


@pytest.mark.parametrize(
    ("text", "model", "layer", "op", "least"),
    [
        (QUANT, CNN, "block3/second/conv", "AveragePool", 20.0),
        (HFMG, CNN, "", "", 25.0),
        (ADA_ROUND, CNN, "", "", 25.0),
        (DMQ_BALANCER, TRANSFORMER, "head", "Conv", 15.0),
    ],
    ids=["quant", "hfmg", "ada_round", "dmq_balancer"],
)
def test_the_samples_of_the_manual_drive_a_whole_run(
    text: str, model: Path, layer: str, op: str, least: float, tmp_path: Path, images: np.ndarray
) -> None:
    config = tmp_path / "quant.cfg"
    config.write_text(named(text, layer, op))
    amct.create_quant_config(tmp_path / "config.json", model, config_defination=config)
    for file in (config, tmp_path / "config.json"):
        calibrate(file, model, tmp_path, images)
        twin, deploy = tmp_path / "net_fake_quant_model.onnx", tmp_path / "net_deploy_model.onnx"
        assert sqnr(model, twin, images) > least
        assert abs(sqnr(model, simulate_model(deploy).model, images) - sqnr(model, twin, images)) < 0.2
        assert json.loads((tmp_path / "net_quant.json").read_text())["graph"]


@pytest.mark.parametrize("text", [QUANT, DMQ_BALANCER], ids=["quant", "dmq_balancer"])
def test_placeholders_that_are_left_in_are_unknown_layers(text: str, tmp_path: Path) -> None:
    (tmp_path / "quant.cfg").write_text(broken(text))
    with pytest.raises(RecipeError, match=r"'Opname'"):
        amct.create_quant_config(tmp_path / "config.json", CNN, config_defination=tmp_path / "quant.cfg")
    assert not (tmp_path / "config.json").exists()


def test_skipped_layers_and_offsets_reach_the_record(tmp_path: Path, images: np.ndarray) -> None:
    config = tmp_path / "config.json"
    amct.create_quant_config(config, CNN, skip_layers=["head"], batch_num=2, activation_offset=False)
    calibrate(config, CNN, tmp_path, images)
    layers = amct.read_record(tmp_path / "record.txt").layers
    assert "head" not in layers
    assert len(layers) == 8
    assert {f.offset_d for f in layers.values()} == {0}


def test_a_record_made_by_hand_is_enough(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "hand.txt").write_text(
        'record { key: "head" value { scale_d: 0.05 offset_d: -128 scale_w: 0.01 offset_w: 0 skip_fusion: true } }'
    )
    amct.save_model(CNN, tmp_path / "hand.txt", f"{tmp_path}/")
    model = onnx.load(tmp_path / "deploy_model.onnx")
    assert [n.name for n in model.graph.node if n.op_type == "AscendQuant"] == ["head.quant"]
    assert sqnr(CNN, tmp_path / "fake_quant_model.onnx", images) > 15


def test_names_for_nodes_without_names(tmp_path: Path) -> None:
    plain = build(
        "g (float[N,3] x) => (float[N,2] y) { a = MatMul (x, W) y = Relu (a) }", W=np.ones((3, 2), np.float32)
    )
    onnx.save(plain, tmp_path / "plain.onnx")
    amct.create_quant_config(tmp_path / "c.json", tmp_path / "plain.onnx", updated_model=tmp_path / "named.onnx")
    names = [n.name for n in onnx.load(tmp_path / "named.onnx").graph.node]
    assert all(names)
    assert names[0] in json.loads((tmp_path / "c.json").read_text())


def test_preprocessing_writes_the_balance_factors(tmp_path: Path, images: np.ndarray) -> None:
    config = tmp_path / "quant.cfg"
    config.write_text("common_config : { dmq_balancer : { migration_strength : 0.5 } }")
    amct.quantize_preprocess(config, tmp_path / "record.txt", TRANSFORMER, {"image": images[:16]})
    text = (tmp_path / "record.txt").read_text()
    assert "tensor_balance_factor" in text
    assert "scale_d" not in text
    config.write_text("batch_num : 1")
    with pytest.raises(RecipeError, match="no layer has a dmq_balancer"):
        amct.quantize_preprocess(config, tmp_path / "record.txt", TRANSFORMER, {"image": images[:16]})


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        amct.save_model(CNN, tmp_path / "record.txt", tmp_path / "missing" / "net")
    (tmp_path / "bad.txt").write_text('record { key: "head" value { scale_d: -1 offset_d: 0 scale_w: 1 offset_w: 0 } }')
    with pytest.raises(RecordError, match="scale_d"):
        amct.save_model(CNN, tmp_path / "bad.txt", tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt"]


# ---- the search ----------------------------------------------------------------------------------


class Evaluator(amct.AutoCalibrationEvaluatorBase):
    """Asks for an SQNR; counts what it is asked."""

    def __init__(self, model: Path, images: np.ndarray, wanted: float) -> None:
        self._model, self._images, self._wanted = model, images, wanted
        self.calibrated = 0

    def calibration(self, model: object) -> None:
        self.calibrated += 1
        for start in (0, 16):
            model.run(None, {"image": self._images[start : start + 16]})  # type: ignore[attr-defined]

    def evaluate(self, model: str) -> float:
        return 99.0 if model == str(self._model) else sqnr(self._model, Path(model), self._images)

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return new_metric > self._wanted, original_metric - new_metric


def search(model: Path, wanted: float, folder: Path, images: np.ndarray, batches: int = 2) -> tuple[object, Evaluator]:
    amct.create_quant_config(folder / "config.json", model, batch_num=batches)
    evaluator = Evaluator(model, images, wanted)
    found = amct.accuracy_based_auto_calibration(
        model, evaluator, folder / "config.json", folder / "record.txt", folder / "net"
    )
    return found, evaluator


def test_the_search_rolls_back_until_the_user_is_content(tmp_path: Path, images: np.ndarray) -> None:
    model = MODELS / "digits_mobilenet.onnx"
    found, evaluator = search(model, 22.0, tmp_path, images)
    assert found.rolled_back
    assert (found.calibrations, evaluator.calibrated) == (1, 1)
    assert sqnr(model, tmp_path / "net_fake_quant_model.onnx", images) > 22.0
    layers = amct.read_record(tmp_path / "record.txt").layers
    assert set(found.rolled_back).isdisjoint(layers)
    final = json.loads((tmp_path / "accuracy_based_auto_calibration_final_config.json").read_text())
    assert [name for name in found.rolled_back if final[name]["quant_enable"]] == []
    ranked = json.loads((tmp_path / "accuracy_based_auto_calibration_ranking_information.json").read_text())
    assert [value for _, value in ranked] == sorted(value for _, value in ranked)
    history = json.loads((tmp_path / "amct_log" / "accuracy_based_auto_calibration_record.json").read_text())
    assert len(history) == found.evaluations - 1


def test_where_nothing_is_good_enough_no_model_is_written(tmp_path: Path, images: np.ndarray) -> None:
    found, _ = search(CNN, 90.0, tmp_path, images)
    assert not found.found
    assert not list(tmp_path.glob("net*")) + list(tmp_path.glob("record*"))


def test_an_evaluator_that_runs_too_few_batches(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="needs 3 batches and was run on 2"):
        search(CNN, 10.0, tmp_path, images, batches=3)
