"""The JSON of training and pruning: what is written is read again, and nothing else."""

import json

import pytest

from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.retrain_algorithms import ArqRetrain, FilterPrune, SelectivePrune, Ulq, UlqRetrain
from onnxq.dialects.amct.retrain_config import parse_retrain_config
from onnxq.dialects.amct.retrain_json import (
    RetrainJson,
    format_retrain_json,
    is_retrain_json,
    parse_retrain_json,
)
from onnxq.dialects.amct.retrain_settings import RetrainLayer, resolve_retrain
from onnxq.errors import RecipeError
from tests.dialects.amct.retrain_configs import SAMPLES, named

LAYERS = Layers.of([Layer("conv", "Conv", 4, 4), Layer("up", "Conv", 4, 4), Layer("head", "Gemm", 2, 2, bias=True)])
FULL = RetrainJson(
    {
        "conv": RetrainLayer(True, Ulq(6.0, -2.5, True), ArqRetrain(channel_wise=True), FilterPrune(0.3)),
        "up": RetrainLayer(True, Ulq(num_bits=16), UlqRetrain(channel_wise=True), SelectivePrune(2)),
        "head": RetrainLayer(False, Ulq(num_bits=4, fixed_min=False), ArqRetrain(channel_wise=False, num_bits=4)),
    },
    batch_num=2,
    fp16_scales=True,
)
AS_AMCT_WRITES = """{
    "version":1,
    "batch_num":1,
    "conv":{
        "retrain_enable":true,
        "retrain_data_config":{
            "algo":"ulq_quantize",
            "dst_type":"INT8",
            "clip_max":6.0,
            "clip_min":-6.0,
            "fixed_min":true
        },
        "retrain_weight_config":{
            "algo":"arq_retrain",
            "channel_wise":true,
            "dst_type":"INT8"
        },
        "regular_prune_enable":true,
        "regular_prune_config":{
            "prune_type":"filter_prune",
            "algo":"balanced_l2_norm_filter_prune",
            "prune_ratio":0.3,
            "ascend_optimized":true
        }
    }
}"""


def test_as_amct_writes_it():
    found = parse_retrain_json(AS_AMCT_WRITES)
    wanted = RetrainLayer(True, Ulq(6.0, -6.0, True), ArqRetrain(channel_wise=True), FilterPrune(0.3))
    assert found == RetrainJson({"conv": wanted})
    assert format_retrain_json(found) == AS_AMCT_WRITES


def test_round_trip():
    text = format_retrain_json(FULL)
    assert parse_retrain_json(text) == FULL
    assert json.loads(text)["up"]["regular_prune_config"] == {
        "prune_type": "selective_prune",
        "algo": "l1_selective_prune",
        "n_out_of_m_type": "M4N2",
        "update_freq": 2,
    }
    assert json.loads(text)["fakequant_precision_mode"] == "FORCE_FP16_QUANT"
    assert is_retrain_json(json.loads(text))
    assert not is_retrain_json({"batch_num": 1, "conv": {"quant_enable": True}})


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_sample_becomes_means_the_same(name):
    config = parse_retrain_config(named(SAMPLES[name], "conv", "Linear"))
    settings = resolve_retrain(config, LAYERS)
    text = format_retrain_json(RetrainJson.of(config, settings))
    again = parse_retrain_json(text, source="x.json").for_model(LAYERS)
    assert resolve_retrain(again, LAYERS).layers == settings.layers
    assert again.prunes is config.prunes


def test_a_layer_that_is_not_named_stays_as_it_is():
    found = resolve_retrain(parse_retrain_json(AS_AMCT_WRITES).for_model(LAYERS), LAYERS).layers
    assert [name for name, layer in found.items() if layer.retrain_enable] == ["conv"]
    assert [name for name, layer in found.items() if layer.prune is not None] == ["conv"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"version":1', '"version":2', "line 2: version: found 2; must be 1"),
        ('"batch_num":1', '"batch_num":0', "line 3: batch_num: found 0; must be at least 1"),
        ('"batch_num":1', '"batch_nun":1', "line 3: batch_nun: unknown key; did you mean 'batch_num'?"),
        ('"batch_num":1', '"version":1', "line 3: key 'version' is already given in line 2"),
        ('"dst_type":"INT8",', '"algo":"ulq_quantize",', "line 8: key 'algo' is already given in line 7"),
        ('"retrain_enable":true', '"retrain_enable":1', "line 5: conv.retrain_enable: found 1; must be true or false"),
        ('"retrain_enable"', '"retrain_enabled"', "line 5: conv.retrain_enabled: unknown key; did you mean"),
        ('"ulq_quantize"', '"ulq"', "line 7: conv.retrain_data_config.algo: found 'ulq'; must be one of ulq_quantize"),
        ('"INT8",', '"INT2",', "line 8: conv.retrain_data_config.dst_type: found 'INT2'"),
        ('"clip_max":6.0', '"clip_max":-6.0', "line 9: conv.retrain_data_config.clip_max: found -6; must be > 0"),
        ('"clip_max":6.0,\n', "\n", "clip_max and clip_min go together"),
        ('"arq_retrain"', '"arq"', "line 14: conv.retrain_weight_config.algo: found 'arq'"),
        ('"dst_type":"INT8"\n', '"dst_type":"INT16"\n', "dst_type: found INT16; weights are INT4 or INT8"),
        ('"filter_prune"', '"filter"', "conv.regular_prune_config.prune_type: found 'filter'; must be one of"),
        ('"filter_prune"', '"selective_prune"', "conv.regular_prune_config.prune_ratio: unknown key"),
        ('"prune_ratio":0.3,\n', "\n", "conv.regular_prune_config: needs prune_ratio"),
        ('"prune_ratio":0.3', '"prune_ratio":1.5', "prune_ratio: found 1.5; must be in (0, 1)"),
        ('"regular_prune_config":{', '"regular_prune_configs":{', "line 18: conv.regular_prune_enable: is true; give"),
    ],
)  # fmt: skip
def test_what_does_not_fit(old, new, problem):
    assert old in AS_AMCT_WRITES
    with pytest.raises(RecipeError) as error:
        parse_retrain_json(AS_AMCT_WRITES.replace(old, new, 1), source="config.json")
    assert str(error.value).startswith("config.json: ")
    assert problem in str(error.value)


def test_a_pair_of_widths_that_does_not_go_together():
    text = AS_AMCT_WRITES.replace('"dst_type":"INT8"', '"dst_type":"INT4"', 1)
    with pytest.raises(RecipeError, match="activations of INT4 with weights of INT8: AMCT refuses this pair"):
        parse_retrain_json(text)


def test_names_are_looked_up_in_the_model():
    config = parse_retrain_json(AS_AMCT_WRITES.replace('"conv"', '"cobv"'), source="config.json").for_model(LAYERS)
    with pytest.raises(RecipeError, match=r"config\.json: line 4: the model has no layer 'cobv'; did you mean 'conv'"):
        resolve_retrain(config, LAYERS)
