import json
from dataclasses import replace

import pytest

from onnxq.dialects.amct.algorithms import Ada, Arq, Hfmg, Ifmr, Nuq
from onnxq.dialects.amct.config import Mention, TensorQuantize, parse_config
from onnxq.dialects.amct.json_config import JsonConfig, format_json, parse_json
from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.settings import LayerSettings, resolve
from onnxq.errors import RecipeError

ON, OFF = Ifmr(asymmetric=True), Ifmr(asymmetric=False)
AS_AMCT_WRITES = """{
    "version":1,
    "batch_num":2,
    "activation_offset":true,
    "joint_quant":false,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "conv1":{
        "quant_enable":true,
        "dmq_balancer_param":0.5,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "wts_algo":"arq_quantize",
            "channel_wise":true
        }
    },
    "fc":{
        "quant_enable":false,
        "activation_quant_params":{
            "num_bits":8,
            "act_algo":"hfmg",
            "num_of_bins":4096,
            "asymmetric":false
        },
        "weight_quant_params":{
            "num_bits":8,
            "wts_algo":"ada_quantize",
            "num_iteration":10000,
            "reg_param":0.01,
            "beta_range":[
                20,
                2
            ],
            "warm_start":0.2,
            "channel_wise":false
        }
    }
}"""
AS_READ = JsonConfig(
    {
        "conv1": LayerSettings(True, ON, Arq(channel_wise=True), 0.5),
        "fc": LayerSettings(False, Hfmg(asymmetric=False), Ada(channel_wise=False)),
    },
    batch_num=2,
    joint_quant=False,
)


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as found:
        parse_json(text)
    first, *rest = str(found.value).splitlines()
    return [line.strip() for line in rest] or [first.removeprefix("config.json: ")]


def changed(old: str, new: str) -> str:
    assert old in AS_AMCT_WRITES
    return AS_AMCT_WRITES.replace(old, new, 1)


def test_it_is_written_byte_for_byte_as_amct_writes_it():
    assert format_json(AS_READ) == AS_AMCT_WRITES
    written = json.dumps(json.loads(AS_AMCT_WRITES), indent=4, separators=(",", ":"))
    assert written == AS_AMCT_WRITES


def test_it_is_read():
    assert parse_json(AS_AMCT_WRITES) == AS_READ


@pytest.mark.parametrize(
    "settings",
    [
        LayerSettings(True, Ifmr((0.8, 1.2), 0.02, 0.9, 0.95, asymmetric=False, num_bits=16), Arq(True, 6), 0.2),
        LayerSettings(True, Hfmg(1024, asymmetric=True), Arq(channel_wise=False, num_bits=4)),
        LayerSettings(True, ON, Ada(7, 0.1, (15.5, 1.5), 0.3, channel_wise=True, num_bits=4), 0.8),
        LayerSettings(True, OFF, Nuq(16, 5)),
        LayerSettings(False, ON, None),
    ],
    ids=lambda s: f"{type(s.activation).__name__}-{type(s.weight).__name__}",
)
def test_settings_come_back_as_they_went(settings):
    config = replace(AS_READ, layers={"a": settings, 'odd "näme"/:0': settings}, joint_quant=None)
    assert parse_json(format_json(config)) == config


def test_global_settings_come_back_as_they_went():
    config = JsonConfig(
        {},
        batch_num=7,
        activation_offset=False,
        do_fusion=False,
        fp16_scales=True,
        skip_fusion_layers=("a", "b"),
        tensors=(TensorQuantize(Mention("pool"), 0, Hfmg(asymmetric=True)), TensorQuantize(Mention("sum"), 1, OFF)),
    )
    text = format_json(config)
    assert parse_json(text) == config
    assert '"fakequant_precision_mode":"FORCE_FP16_QUANT"' in text
    assert "joint_quant" not in text


def test_what_is_left_out_has_its_default():
    found = parse_json('{"activation_offset": false, "a": {}, "b": {"weight_quant_params": {}}}')
    assert found.layers["a"] == LayerSettings(True, OFF, None)
    assert found.layers["b"] == LayerSettings(True, OFF, Arq())
    by_keys = parse_json('{"a": {"activation_quant_params": {"num_of_bins": 1024},'
                         ' "weight_quant_params": {"num_steps": 16}}}')  # fmt: skip
    assert by_keys.layers["a"] == LayerSettings(True, Hfmg(1024, asymmetric=True), Nuq(16))


# ---- problems ----------------------------------------------------------------------------------


def test_keys_given_twice_are_refused_with_both_lines():
    assert problems(changed('"fc":{', '"conv1":{')) == ["line 29: key 'conv1' is already given in line 8"]
    text = changed('"batch_num":2', '"batch_num":2,\n"batch_num":2').replace(
        '"num_bits":8', '"num_bits":8, "num_bits":8', 1
    )
    assert problems(text) == [
        "line 4: key 'batch_num' is already given in line 3",
        "line 13: key 'num_bits' is already given in line 13",
    ]


def test_the_same_key_in_two_objects_is_fine():
    text = '{"a": {"quant_enable": true}, "b": {"quant_enable": false}, "skip_fusion_layers": ["a", "a"]}'
    assert [s.quant_enable for s in parse_json(text).layers.values()] == [True, False]


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"batch_num"', '"batchnum"', "line 3: batchnum: unknown key; did you mean 'batch_num'?"),
        ('"quant_enable"', '"quant_enabled"', "line 9: conv1.quant_enabled: unknown key; did you mean 'quant_enable'?"),
        ('"wts_algo"', '"algo"', "line 25: conv1.weight_quant_params.algo: unknown key; did you mean 'wts_algo'?"),
        ('"search_step":0.01', '"search_step":0.01, "num_of_bins":4096',
         "line 19: conv1.activation_quant_params.num_of_bins: num_of_bins of hfmg together with ifmr"),
        ('"num_of_bins":4096', '"num_of_bins":4096, "search_step":1',
         "line 34: fc.activation_quant_params.search_step: search_step of ifmr together with hfmg"),
        ('"act_algo":"ifmr"', '"act_algo":"ifmrr"',
         "line 20: conv1.activation_quant_params.act_algo: found 'ifmrr'; did you mean 'ifmr'?"),
        ('"wts_algo":"arq_quantize"', '"wts_algo":"arq_quantize", "num_steps":16',
         "line 25: conv1.weight_quant_params.num_steps: num_steps of nuq_quantize together with arq_quantize"),
        ('"version":1', '"version":2', "line 2: version: found 2; must be 1"),
        ('"batch_num":2', '"batch_num":0', "line 3: batch_num: found 0; must be at least 1"),
        ('"batch_num":2', '"batch_num":true', "line 3: batch_num: found True; must be a whole number"),
        ('"do_fusion":true', '"do_fusion":1', "line 6: do_fusion: found 1; must be true or false"),
        ('"skip_fusion_layers":[]', '"skip_fusion_layers":[1]',
         "line 7: skip_fusion_layers: found [1]; must be a list of names in double quotes"),
        ('"skip_fusion_layers":[]', '"fakequant_precision_mode":"FP16"',
         "line 7: fakequant_precision_mode: found 'FP16'; must be 'FORCE_FP16_QUANT'"),
        ('"dmq_balancer_param":0.5', '"dmq_balancer_param":0.9',
         "line 10: conv1.dmq_balancer_param: found 0.9; must be in [0.2, 0.8]"),
        ("0.7", '"a"', "line 16: conv1.activation_quant_params.search_range.0: found 'a'; must be a number"),
        ("0.7", "1.4",
         "line 15: conv1.activation_quant_params.search_range: found 1.4 to 1.3; must be 0 < start < end"),
        ('"search_step":0.01', '"search_step":0.7',
         "line 19: conv1.activation_quant_params.search_step: found 0.7; must be > 0 and at most 0.6, end - start"),
        ('"num_bits":8', '"num_bits":7', "line 12: conv1.activation_quant_params.num_bits: found 7; must be 8 or 16"),
        ('"num_of_bins":4096', '"num_of_bins":100',
         "line 34: fc.activation_quant_params.num_of_bins: found 100; must be 1024, 2048, 4096 or 8192"),
        ('"warm_start":0.2', '"warm_start":1.0',
         "line 46: fc.weight_quant_params.warm_start: found 1; must be in (0, 1), both ends excluded"),
        ('                20,\n', '',
         "line 42: fc.weight_quant_params.beta_range: found [2]; must be a list of two numbers"),
        ('"asymmetric":true', '"asymmetric":null',
         "line 21: conv1.activation_quant_params.asymmetric: found None; must be true or false"),
        ("0.7", "NaN", "found NaN; must be a finite number"),
        ('"version":1,', '"version":1', "line 3: Expecting ',' delimiter (column 5)"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit(old, new, wanted):
    assert problems(changed(old, new)) == [wanted]


def test_all_problems_at_once():
    text = changed('"batch_num":2', '"batch_num":0').replace('"version"', '"versoin"').replace("0.01", "9")
    assert [line.split(":")[0] for line in problems(text)] == ["line 2", "line 3", "line 19", "line 41"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[]", "line 1: found []; must be an object, in braces"),
        ('{"a": {"activation_quant_params": 3}}',
         "line 1: a.activation_quant_params: found 3; must be an object, in braces"),
        ('{"tensor_quantize": 3}', "line 1: tensor_quantize: found 3; must be a list of objects"),
        ('{"tensor_quantize":\n [{"input_index": 0}]}',
         "line 2: tensor_quantize.0.layer_name: found None; must be the name of a layer"),
        ('{"tensor_quantize":\n [{"layer_name": "a", "index": 0}]}',
         "line 2: tensor_quantize.0.index: unknown key; did you mean 'input_index'?"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind(text, wanted):
    assert problems(text) == [wanted]


# ---- with a model ------------------------------------------------------------------------------

LAYERS = Layers(
    {
        "conv1": Layer("conv1", "Conv", weight_rank=4),
        "fc": Layer("fc", "Gemm", weight_rank=2),
        "conv2": Layer("conv2", "Conv", weight_rank=4),
    }
)


def test_a_layer_that_is_missing_or_not_enabled_stays_float():
    found = resolve(parse_json(AS_AMCT_WRITES).for_model(LAYERS), LAYERS)
    assert {n: s.quant_enable for n, s in found.layers.items()} == {"conv1": True, "fc": False, "conv2": False}
    assert found.layers["conv1"] == AS_READ.layers["conv1"]
    assert found.notes == ()


def test_a_layer_the_model_does_not_have():
    text = changed('"fc":{', '"fcc":{')
    with pytest.raises(RecipeError) as found:
        resolve(parse_json(text, source="c.json").for_model(LAYERS), LAYERS)
    assert str(found.value).startswith("c.json: line 29: the model has no layer 'fcc'; did you mean 'fc'")


def test_what_a_layer_cannot_have_is_an_error_with_its_line():
    text = changed('"channel_wise":false', '"channel_wise":true').replace('"quant_enable":false', '"quant_enable":true')
    with pytest.raises(RecipeError, match=r"line 29: layer 'fc' \(Gemm\): channel_wise true is for Conv"):
        resolve(parse_json(text).for_model(LAYERS), LAYERS)


def test_from_text_to_json_and_back():
    config = parse_config(
        """batch_num: 3 activation_offset: false skip_layers: "conv2" skip_fusion_layers: "conv1"
        common_config { hfmg_quantize { } dmq_balancer { } }
        override_layer_types { layer_type: "Linear" calibration_config { nuq_quantize { } } }"""
    )
    resolved = resolve(config, LAYERS)
    written = JsonConfig.of(config, resolved)
    read = parse_json(format_json(written))
    assert read == written
    again = resolve(read.for_model(LAYERS), LAYERS)
    assert again.layers == resolved.layers
    assert again.skip_fusion == resolved.skip_fusion == ("conv1",)
