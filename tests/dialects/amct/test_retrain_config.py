"""AMCT's configuration of training and pruning: the manual's samples, ranges, names, precedence."""

import pytest

from onnxq.dialects.amct.config import Mention
from onnxq.dialects.amct.layers import Layer, Layers
from onnxq.dialects.amct.retrain_algorithms import (
    ArqRetrain,
    FilterPrune,
    SelectivePrune,
    Ulq,
    UlqRetrain,
)
from onnxq.dialects.amct.retrain_config import (
    AmctRetrainConfig,
    Retraining,
    RetrainOverride,
    is_retrain_text,
    parse_retrain_config,
)
from onnxq.dialects.amct.retrain_settings import resolve_retrain
from onnxq.errors import RecipeError
from tests.dialects.amct import configs
from tests.dialects.amct.retrain_configs import SAMPLES, named

ARQ, ARQ_TENSOR = ArqRetrain(channel_wise=True), ArqRetrain(channel_wise=False)
CLIPPED = Ulq(6.0, -6.0)
LAYERS = Layers.of(
    [
        Layer("conv", "Conv", 4, 4, in_channels=3),
        Layer("deep", "Conv", 4, 4, 8, depthwise=True, in_channels=1),
        Layer("up", "ConvTranspose", 4, 4, in_channels=8),
        Layer("wide", "Conv", 4, 4, in_channels=8),
        Layer("head", "Gemm", 2, 2, bias=True, in_channels=8),
        Layer("bare", "Gemm", 2, 2, in_channels=8),
        Layer("pool", "AveragePool", None, 4),
    ]
)


def resolved(text):
    return resolve_retrain(parse_retrain_config(text, source="retrain.cfg"), LAYERS)


WANTED = {
    "QUANT": AmctRetrainConfig(
        common=Retraining(Ulq(6.0, -6.0, True), ARQ),
        skip_layers=(Mention("Opname"),),
        skip_types=(Mention("Optype"),),
        types=(RetrainOverride(Mention("Optype"), Retraining(weight=ARQ_TENSOR)),),
        layers=(RetrainOverride(Mention("Opname"), Retraining(Ulq(3.0, -3.0))),),
    ),
    "PRUNE": AmctRetrainConfig(
        common=Retraining(prune=FilterPrune(0.3)),
        prune_skip_layers=(Mention("Opname"), Mention("Opname")),
        layers=(RetrainOverride(Mention("Opname"), Retraining(prune=FilterPrune(0.5))),),
    ),
    "SELECTIVE": AmctRetrainConfig(
        common=Retraining(prune=SelectivePrune()),
        prune_skip_layers=(Mention("Opname"), Mention("Opname")),
        layers=(RetrainOverride(Mention("Opname"), Retraining(prune=SelectivePrune(1))),),
    ),
    "COMPRESSED1": AmctRetrainConfig(
        common=Retraining(weight=ARQ, prune=FilterPrune(0.3)),
        skip_types=(Mention("Optype"),),
        quant_skip_layers=(Mention("Opname"),),
        quant_skip_types=(Mention("Optype"),),
        types=(RetrainOverride(Mention("Optype"), Retraining(CLIPPED, ARQ_TENSOR, FilterPrune(0.5))),),
    ),
    "COMPRESSED2": AmctRetrainConfig(
        common=Retraining(weight=ARQ, prune=SelectivePrune()),
        skip_types=(Mention("Optype"),),
        quant_skip_layers=(Mention("quant_skip_layers_name_0"),),
        quant_skip_types=(Mention("Optype"),),
        types=(RetrainOverride(Mention("Optype"), Retraining(CLIPPED, ARQ_TENSOR, SelectivePrune(1))),),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_read_as_it_is(name):
    config = parse_retrain_config(SAMPLES[name])
    wanted = WANTED[name]
    for part in AmctRetrainConfig.__dataclass_fields__:
        if part in ("source", "warnings"):
            continue
        found = getattr(config, part)
        assert found == getattr(wanted, part), part
    assert config.warnings == ()
    assert is_retrain_text(SAMPLES[name])
    assert config.quantizes is (name in ("QUANT", "COMPRESSED1", "COMPRESSED2"))
    assert config.prunes is (name != "QUANT")


@pytest.mark.parametrize("name", ["QUANT", "HFMG", "ADA_ROUND", "DMQ_BALANCER"])
def test_a_configuration_of_calibration_is_another_thing(name):
    assert not is_retrain_text(configs.broken(getattr(configs, name)))


def test_both_spellings_of_messages_and_of_truth():
    text = (
        "prune_config{ filter_pruner { balanced_l2_norm_filter_prune: { prune_ratio: 0.25 ascend_optimized: False } } }"
    )
    for form in (text, text.replace("{", ": {").replace(": :", ":"), text.replace("False", "false")):
        assert parse_retrain_config(form).common.prune == FilterPrune(0.25, ascend_optimized=False)


def test_defaults():
    config = parse_retrain_config("retrain_data_quant_config { ulq_quantize {} } retrain_weight_quant_config {}")
    assert config == AmctRetrainConfig(common=Retraining(Ulq(), ArqRetrain()))
    assert config.batch_num == 1
    half = parse_retrain_config("fakequant_precision_mode: FORCE_FP16_QUANT batch_num: 3")
    assert (half.fp16_scales, half.batch_num) == (True, 3)


def data(inner, place="retrain_data_quant_config"):
    return f"{place} {{ ulq_quantize {{ {inner} }} }}"


def weight(inner, algo="arq_retrain"):
    return f"retrain_weight_quant_config {{ {algo} {{ {inner} }} }}"


def filters(inner):
    return f"prune_config {{ filter_pruner {{ balanced_l2_norm_filter_prune {{ {inner} }} }} }}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("batch_num: 0", "line 1: batch_num: found 0; must be at least 1"),
        (data("clip_max_min { clip_max: 0 clip_min: -1 }"), "clip_max: found 0; must be > 0"),
        (data("clip_max_min { clip_max: -2 clip_min: -3 }"), "clip_max: found -2; must be > 0"),
        (data("clip_max_min { clip_max: 1 clip_min: 0 }"), "clip_min: found 0; must be < 0"),
        (data("clip_max_min { clip_max: inf clip_min: -1 }"), "clip_max: found inf; must be > 0 and finite"),
        (data("clip_max_min { clip_max: 1 }"), "clip_max_min needs clip_min"),
        (data("dst_type: INT9"), "dst_type: found INT9; must be one of INT4, INT8, INT16; did you mean 'INT8'?"),
        (weight("dst_type: INT16"), "arq_retrain.dst_type: found INT16; weights are INT4 or INT8"),
        (weight("dst_type: INT16", "ulq_retrain"), "ulq_retrain.dst_type: found INT16"),
        (weight("channelwise: true"), "arq_retrain has no field 'channelwise'; did you mean 'channel_wise'?"),
        (filters("prune_ratio: 0"), "prune_ratio: found 0; must be in (0, 1)"),
        (filters("prune_ratio: 1"), "prune_ratio: found 1; must be in (0, 1)"),
        (filters("ascend_optimized: true"), "needs prune_ratio"),
        ("prune_config { }", "prune_config: is empty; give one of filter_pruner, n_out_of_m_pruner"),
        ("prune_config { filter_pruner { } }", "filter_pruner: is empty"),
        ("prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: -1 } } }", "update_freq: found -1"),
        ("prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M8N4 } } }", "found M8N4; must be"),
        ('override_layer_configs { layer_name: "conv" }', "says nothing but layer_name"),
        ("override_layer_types { retrain_weight_quant_config { } }", "override_layer_types needs layer_type"),
        ("quant_skip_layer: 'x'", "has no field 'quant_skip_layer'; did you mean 'quant_skip_layers'"),
    ],
)
def test_what_is_not_allowed(text, problem):
    with pytest.raises(RecipeError) as error:
        parse_retrain_config(text, source="retrain.cfg")
    assert str(error.value).startswith("retrain.cfg: line 1: ")
    assert problem in str(error.value)


def test_all_problems_are_told_with_their_lines():
    text = "batch_num: 0\n" + data("\nclip_max_min {\nclip_max: 0\nclip_min: 1 }")
    with pytest.raises(RecipeError) as error:
        parse_retrain_config(text, source="retrain.cfg")
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()] == [
        "retrain.cfg", "line 1", "line 4", "line 5",
    ]  # fmt: skip


# ---- names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('skip_layers: "con"', "line 1: the model has no layer 'con'; did you mean 'conv'"),
        ('quant_skip_layers: "heat"', "the model has no layer 'heat'; did you mean 'head'"),
        ('regular_prune_skip_layers: "wild"', "the model has no layer 'wild'; did you mean 'wide'"),
        ('skip_layer_types: "Convv2d"', "AMCT has no layer type 'Convv2d'; did you mean 'Conv2d'"),
        ('quant_skip_types: "Liner"', "AMCT has no layer type 'Liner'; did you mean 'Linear'"),
        ('regular_prune_skip_types: "Gem"', "AMCT has no layer type 'Gem'; did you mean 'Gemm'"),
        ('override_layer_configs { layer_name: "uo" retrain_weight_quant_config {} }', "has no layer 'uo'"),
        ('override_layer_types { layer_type: "Up" retrain_weight_quant_config {} }', "has no layer type 'Up'"),
        (
            'override_layer_configs { layer_name: "pool" retrain_weight_quant_config {} }',
            "layer 'pool' (AveragePool) has no constant weight: it is neither trained nor pruned",
        ),
        (
            f'override_layer_configs {{ layer_name: "bare" {data("dst_type: INT16")} }}',
            "layer 'bare' (Gemm): dst_type INT16 is for Conv",
        ),
        (
            f'override_layer_configs {{ layer_name: "head" {weight("channel_wise: true")} }}',
            "layer 'head' (Gemm): channel_wise true is for Conv and ConvTranspose",
        ),
        (
            f'override_layer_configs {{ layer_name: "up" {filters("prune_ratio: 0.5")} }}',
            "layer 'up' (ConvTranspose): balanced_l2_norm_filter_prune is for Conv, Gemm and MatMul",
        ),
        (
            f'override_layer_configs {{ layer_name: "deep" {filters("prune_ratio: 0.5")} }}',
            "layer 'deep' (Conv): balanced_l2_norm_filter_prune",
        ),
    ],
)
def test_what_the_model_does_not_have(text, problem):
    with pytest.raises(RecipeError) as error:
        resolved(text)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("act", "wts", "fine"),
    [(8, 8, True), (8, 4, True), (4, 4, True), (16, 8, True), (4, 8, False), (16, 4, False)],
)
@pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
def test_pairs_of_widths(act, wts, algo, fine):
    text = f'skip_layers: "bare"\n{data(f"dst_type: INT{act}")} {weight(f"dst_type: INT{wts}", algo)}'
    if fine:
        found = resolved(text).layers["wide"]
        assert (found.data.num_bits, found.weight.num_bits) == (act, wts)
        assert isinstance(found.weight, ArqRetrain if algo == "arq_retrain" else UlqRetrain)
        return
    with pytest.raises(RecipeError) as error:
        resolved(text)
    assert f"activations of INT{act} with weights of INT{wts}: AMCT refuses this pair" in str(error.value)
    assert "INT8 with INT8, INT8 with INT4, INT4 with INT4, INT16 with INT8" in str(error.value)


# ---- precedence

TYPE, LAYER = 'override_layer_types { layer_type: "Conv2d" %s }', 'override_layer_configs { layer_name: "wide" %s }'
D4, D6, D8 = (data(f"clip_max_min {{ clip_max: {n} clip_min: -1 }}") for n in (4, 6, 8))
W_ULQ, W_TENSOR = weight("", "ulq_retrain"), weight("channel_wise: false")
P3, P5, S2 = filters("prune_ratio: 0.3"), filters("prune_ratio: 0.5"), "prune_config { n_out_of_m_pruner { } }"


@pytest.mark.parametrize(
    ("text", "data_wanted", "weight_wanted", "prune_wanted"),
    [
        ("", Ulq(), ARQ, None),
        (D4, Ulq(4.0, -1.0), ARQ, None),
        (D4 + TYPE % D6, Ulq(6.0, -1.0), ARQ, None),
        (D4 + LAYER % D8 + TYPE % D6, Ulq(8.0, -1.0), ARQ, None),
        (D4 + W_TENSOR + TYPE % W_ULQ, Ulq(4.0, -1.0), UlqRetrain(channel_wise=True), None),  # the other is inherited
        (D4 + W_TENSOR + TYPE % D6, Ulq(6.0, -1.0), ARQ_TENSOR, None),
        (W_TENSOR + TYPE % W_ULQ + LAYER % D8, Ulq(8.0, -1.0), UlqRetrain(channel_wise=True), None),
        (D4 + LAYER % W_TENSOR + TYPE % (D6 + W_ULQ), Ulq(6.0, -1.0), ARQ_TENSOR, None),
        (P3, Ulq(), ARQ, FilterPrune(0.3)),
        (P3 + TYPE % P5, Ulq(), ARQ, FilterPrune(0.5)),
        (P3 + TYPE % P5 + LAYER % S2, Ulq(), ARQ, SelectivePrune()),
        (P3 + LAYER % D8, Ulq(8.0, -1.0), ARQ, FilterPrune(0.3)),
        (D4 + TYPE % D6 + TYPE % D8, Ulq(8.0, -1.0), ARQ, None),  # what is written later wins
        (D4 + LAYER % D6 + LAYER % D8, Ulq(8.0, -1.0), ARQ, None),
    ],
)
def test_precedence(text, data_wanted, weight_wanted, prune_wanted):
    found = resolved(text).layers["wide"]
    assert (found.data, found.weight, found.prune) == (data_wanted, weight_wanted, prune_wanted)


def test_an_override_leaves_other_layers_alone():
    found = resolved(D4 + LAYER % D8 + P3).layers
    assert found["wide"].data == Ulq(8.0, -1.0)
    assert {found[name].data for name in ("conv", "head", "up")} == {Ulq(4.0, -1.0)}
    assert "pool" not in found


@pytest.mark.parametrize(
    ("text", "unquantized", "unpruned"),
    [
        ('skip_layers: "conv"', {"conv"}, {"conv"}),
        ('quant_skip_layers: "conv"', {"conv"}, set()),
        ('regular_prune_skip_layers: "conv"', set(), {"conv"}),
        ('skip_layers: "conv" quant_skip_layers: "wide"', {"conv", "wide"}, {"conv"}),
        ('skip_layers: "conv" regular_prune_skip_layers: "wide"', {"conv"}, {"conv", "wide"}),
        ('skip_layer_types: "Linear" quant_skip_types: "ConvTranspose2d"', {"head", "bare", "up"}, {"head", "bare"}),
        (
            'skip_layer_types: "Linear" regular_prune_skip_types: "Conv"',
            {"head", "bare"},
            {"head", "bare", "conv", "wide"},
        ),
    ],
)
def test_skip_lists_are_united(text, unquantized, unpruned):
    found = resolved(P3 + text).layers
    assert {name for name, layer in found.items() if not layer.retrain_enable} == unquantized
    prunable = {"conv", "wide", "head", "bare"}
    assert {name for name in prunable if found[name].prune is None} == unpruned
    assert all(found[name].prune is None for name in ("deep", "up"))  # these follow others


def test_notes_tell_what_has_another_effect():
    notes = resolved(data("dst_type: INT16") + weight("channel_wise: true") + P3).notes
    assert (
        "dst_type INT16 is for Conv and ConvTranspose with 4-D weights, Gemm with a bias, and MatMul; INT8 for: 'bare'"
        in notes
    )
    assert "channel_wise true is for Conv and ConvTranspose; one scale for: 'head', 'bare'" in notes
    assert any("other layers follow those in front; not pruned by itself: 'deep', 'up'" in note for note in notes)
    notes = resolved(data("dst_type: INT4") + weight("dst_type: INT4")).notes
    assert any(note.startswith("released versions of AMCT refuse INT4 activations") for note in notes)
    assert any(note.endswith("of which there is an odd number: 'conv', 'deep'") for note in notes)


def test_a_torch_module_is_known_by_its_path():
    layers = Layers.of([Layer("/layer1/conv1/Conv", "Conv", 4, 4)])
    found = resolve_retrain(parse_retrain_config('skip_layers: "layer1.conv1"'), layers)
    assert not found.layers["/layer1/conv1/Conv"].retrain_enable


def test_placeholders_can_be_named():
    text = named(SAMPLES["COMPRESSED2"], "conv", "Linear", "wide")
    found = resolved(text).layers
    assert [n for n, layer in found.items() if not layer.retrain_enable] == ["wide", "head", "bare"]
    assert found["head"].prune is None
    assert found["wide"].prune == SelectivePrune()
