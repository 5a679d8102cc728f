import numpy as np
import pytest

import onnxq
from onnxq.dialects.amct.algorithms import Ada, Arq, Hfmg, Ifmr, Nuq
from onnxq.dialects.amct.config import parse_config
from onnxq.dialects.amct.job import is_amct_config, load_config, prepare, to_recipe
from onnxq.dialects.amct.layers import Layer, Layers, layers_of
from onnxq.dialects.amct.names import LAYER_TYPES, module_path
from onnxq.dialects.amct.settings import LayerSettings, Resolved, TensorSettings, resolve
from onnxq.errors import RecipeError
from onnxq.recipe import HFMG, IFMR, NUQ, AbsMax, AdaRound
from tests.dialects.amct import configs
from tests.graphs import build, normal

CONV, DEPTHWISE, CONV3D, GEMM, MATMUL, TWO, POOL, UP = (
    Layer("conv", "Conv", weight_rank=4, input_rank=4, bias=True),
    Layer("dw", "Conv", weight_rank=4, input_rank=4, group=8, depthwise=True),
    Layer("conv3d", "Conv", weight_rank=5, input_rank=5),
    Layer("gemm", "Gemm", weight_rank=2, input_rank=2, bias=True),
    Layer("matmul", "MatMul", weight_rank=2, input_rank=3),
    Layer("two", "MatMul", input_rank=4),
    Layer("pool", "AveragePool", input_rank=4),
    Layer("up", "ConvTranspose", weight_rank=4, input_rank=4),
)
ALL = (CONV, DEPTHWISE, CONV3D, GEMM, MATMUL, TWO, POOL, UP)


def resolved(text: str, *layers: Layer, **options: bool) -> Resolved:
    return resolve(parse_config(text), Layers.of(list(layers or ALL)), **options)


def problems(text: str, layers: Layers) -> list[str]:
    with pytest.raises(RecipeError) as found:
        resolve(parse_config(text), layers)
    first, *rest = str(found.value).splitlines()
    return [line.strip() for line in rest] or [first.removeprefix("quant.cfg: ")]


def common(body: str) -> str:
    return f"common_config {{ {body} }}\n"


def of_type(name: str, body: str) -> str:
    return f'override_layer_types {{ layer_type: "{name}" calibration_config {{ {body} }} }}\n'


def of_layer(name: str, body: str) -> str:
    return f'override_layer_configs {{ layer_name: "{name}" calibration_config {{ {body} }} }}\n'


# ---- precedence --------------------------------------------------------------------------------

WEIGHTS = [
    ("", Arq(channel_wise=True)),
    (common("arq_quantize { channel_wise: false quant_bits: 7 }"), Arq(channel_wise=False, num_bits=7)),
    (of_type("Conv", "arq_quantize { quant_bits: 6 }"), Arq(channel_wise=True, num_bits=6)),
    (common("arq_quantize { channel_wise: false quant_bits: 7 }") + of_type("Conv2d", "arq_quantize { }"),
     Arq(channel_wise=True, num_bits=8)),  # the stronger algorithm brings its own defaults along
    (common("arq_quantize { }") + of_type("Conv2D", "ada_quantize { num_iteration: 3 }"),
     Ada(num_iteration=3, channel_wise=True)),
    (of_layer("conv", "arq_quantize { quant_bits: 7 }") + of_type("Conv", "ada_quantize { }"),
     Arq(channel_wise=True, num_bits=7)),
    (of_layer("conv", "dmq_balancer { }") + of_type("Conv", "nuq_quantize { }"), Nuq()),
    (of_layer("conv", "dmq_balancer { }") + common("ada_quantize { }"), Ada(channel_wise=True)),
    (of_type("Conv2d", "arq_quantize { quant_bits: 6 }") + of_type("Conv", "arq_quantize { quant_bits: 7 }"),
     Arq(channel_wise=True, num_bits=7)),
    (of_type("Conv", "arq_quantize { quant_bits: 7 }") + of_type("Conv2d", "arq_quantize { quant_bits: 6 }"),
     Arq(channel_wise=True, num_bits=6)),
    (of_layer("conv", "arq_quantize { quant_bits: 6 }") + of_layer("conv", "arq_quantize { quant_bits: 7 }"),
     Arq(channel_wise=True, num_bits=7)),
    ('nuq_config { mapping_file: "" nuq_quantize { num_steps: 16 } }' + common("arq_quantize { }"), Nuq(16)),
    ('nuq_config { mapping_file: "" }' + of_type("Conv", "arq_quantize { }"), Arq(channel_wise=True)),
    (of_type("Gemm", "arq_quantize { quant_bits: 6 }"), Arq(channel_wise=True)),
    (of_layer("gemm", "arq_quantize { quant_bits: 6 }"), Arq(channel_wise=True)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), WEIGHTS)
def test_the_algorithm_for_weights_of_a_convolution(text, wanted):
    assert resolved(text).layers["conv"].weight == wanted


IFMR_OWN = Ifmr(search_step=0.02)
ACTIVATIONS = [
    ("", Ifmr(asymmetric=True)),
    ("activation_offset: false\n", Ifmr(asymmetric=False)),
    ("activation_offset: false\n" + common("ifmr_quantize { asymmetric: true }"), Ifmr(asymmetric=True)),
    (common("ifmr_quantize { asymmetric: false }"), Ifmr(asymmetric=False)),
    (common("ifmr_quantize { asymmetric: false }") + of_type("Conv", "ifmr_quantize { asymmetric: true }"),
     Ifmr(asymmetric=True)),
    (common("ifmr_quantize { asymmetric: false search_step: 0.1 }") + of_type("Conv", "ifmr_quantize { }"),
     Ifmr(asymmetric=False)),  # the parameters are replaced, asymmetric is looked up by itself
    (common("hfmg_quantize { asymmetric: false }") + of_layer("conv", "ifmr_quantize { search_step: 0.02 }"),
     Ifmr(search_step=0.02, asymmetric=False)),
    (of_type("Conv", "hfmg_quantize { asymmetric: false }") + of_layer("conv", "ifmr_quantize { asymmetric: true }"),
     Ifmr(asymmetric=True)),
    ("activation_offset: false\n" + of_layer("conv", "hfmg_quantize { num_of_bins: 1024 }")
     + of_type("Conv", "ifmr_quantize { asymmetric: true }"), Hfmg(1024, asymmetric=True)),
    (common("hfmg_quantize { }") + of_layer("conv", "arq_quantize { }"), Hfmg(asymmetric=True)),
    (common("hfmg_quantize { }") + of_type("Gemm", "ifmr_quantize { }"), Hfmg(asymmetric=True)),
    (of_layer("conv", "ifmr_quantize { dst_type: INT16 }"), Ifmr(asymmetric=True, num_bits=16)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), ACTIVATIONS)
def test_the_algorithm_for_activations_of_a_convolution(text, wanted):
    assert resolved(text).layers["conv"].activation == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        (common("dmq_balancer { }"), 0.5),
        (common("dmq_balancer { }") + of_type("Conv", "dmq_balancer { migration_strength: 0.2 }"), 0.2),
        (of_layer("conv", "dmq_balancer { migration_strength: 0.8 }") + of_type("Conv", "dmq_balancer { }"), 0.8),
        (of_layer("conv", "arq_quantize { }") + common("dmq_balancer { migration_strength: 0.3 }"), 0.3),
    ],
)
def test_the_balancing_of_a_convolution(text, wanted):
    assert resolved(text).layers["conv"].dmq == wanted


def test_defaults_of_every_kind_of_layer():
    found = resolved("").layers
    assert list(found) == [layer.name for layer in ALL]
    channel_wise = {name: s.weight and s.weight.channel_wise for name, s in found.items()}
    per_channel = dict.fromkeys(["conv", "dw", "conv3d", "up"], True)
    assert channel_wise == {**per_channel, "gemm": False, "matmul": False, "two": None, "pool": False}
    assert {name for name, s in found.items() if s.activation.asymmetric} == set(found) - {"conv3d", "two"}
    assert all(s.quant_enable and s.dmq is None for s in found.values())


# ---- what only some layers take ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "taken", "note"),
    [
        ("arq_quantize { quant_bits: 7 }", {"conv", "dw"},
         ("7 bits for weights take effect in Conv with a 4-D weight only; 8 bits for "
         "'conv3d', 'gemm', 'matmul', 'up'")),
        ("ada_quantize { }", {"conv", "dw", "gemm", "matmul", "up"},
         "ada_quantize is for Conv and ConvTranspose with 4-D weights, Gemm, and MatMul; arq_quantize for 'conv3d'"),
        ("nuq_quantize { }", {"conv", "gemm"},
         ("nuq_quantize is for Gemm, and Conv with a 4-D weight, dilation 1 and one group; arq_quantize for "
         "'dw', 'conv3d', 'matmul', 'up'")),
        ("arq_quantize { channel_wise: true }", {"conv", "dw", "conv3d", "up"},
         "channel_wise true is for Conv and ConvTranspose; one scale per tensor for 'gemm', 'matmul', 'pool'"),
        ("dmq_balancer { }", {"conv", "dw", "conv3d", "gemm", "matmul", "up"},
         "dmq_balancer is for layers with a constant weight; not balanced: 'two', 'pool'"),
        ("ifmr_quantize { dst_type: INT16 }", {"conv", "dw", "gemm", "matmul", "up"},
         ("dst_type INT16 is for Conv and ConvTranspose with 4-D weights, Gemm with a bias, and MatMul; INT8 for "
         "'conv3d', 'two', 'pool'")),
    ],
)  # fmt: skip
def test_common_settings_take_effect_where_they_can_and_a_note_names_the_rest(body, taken, note):
    effects = {
        "arq_quantize { quant_bits: 7 }": lambda s: s.weight and s.weight.num_bits == 7,
        "ada_quantize { }": lambda s: isinstance(s.weight, Ada),
        "nuq_quantize { }": lambda s: isinstance(s.weight, Nuq),
        "arq_quantize { channel_wise: true }": lambda s: s.weight and s.weight.channel_wise,
        "dmq_balancer { }": lambda s: s.dmq == 0.5,
        "ifmr_quantize { dst_type: INT16 }": lambda s: s.activation.num_bits == 16,
    }
    found = resolved(common(body))
    assert {name for name, s in found.layers.items() if effects[body](s)} == taken
    assert note in found.notes


@pytest.mark.parametrize(
    ("name", "body", "wanted"),
    [
        ("gemm", "arq_quantize { channel_wise: true }",
         "layer 'gemm' (Gemm): channel_wise true is for Conv and ConvTranspose"),
        ("pool", "arq_quantize { channel_wise: true }",
         "layer 'pool' (AveragePool): channel_wise true is for Conv and ConvTranspose"),
        ("dw", "nuq_quantize { }",
         "layer 'dw' (Conv): nuq_quantize is for Gemm, and Conv with a 4-D weight, dilation 1 and one group"),
        ("conv3d", "ada_quantize { }",
         "layer 'conv3d' (Conv): ada_quantize is for Conv and ConvTranspose with 4-D weights, Gemm, and MatMul"),
        ("conv3d", "ifmr_quantize { asymmetric: true }",
         "layer 'conv3d' (Conv): activations of a Conv3d are symmetric only"),
        ("two", "hfmg_quantize { asymmetric: true }",
         "layer 'two' (MatMul): the inputs of a MatMul of two variables are symmetric only"),
        ("pool", "dmq_balancer { }", "layer 'pool' (AveragePool): dmq_balancer is for layers with a constant weight"),
    ],
)  # fmt: skip
def test_what_is_asked_of_one_layer_by_name_is_an_error(name, body, wanted):
    assert problems("\n" + of_layer(name, body), Layers.of(list(ALL))) == [f"line 2: {wanted}"]


def test_channel_wise_for_a_type_that_has_none_is_an_error():
    text = of_type("Linear", "arq_quantize { channel_wise: true }")
    why = "channel_wise true is for Conv and ConvTranspose"
    assert problems(text, Layers.of([GEMM, MATMUL, CONV])) == [
        f"line 1: layer 'gemm' (Gemm): {why}",
        f"line 1: layer 'matmul' (MatMul): {why}",
    ]


def test_beyond_amct_linear_layers_have_a_scale_per_channel():
    found = resolved(of_layer("gemm", "arq_quantize { channel_wise: true }"), per_channel_linear=True).layers
    assert [found[n].weight.channel_wise for n in ("gemm", "matmul", "conv", "pool")] == [True, True, True, False]
    found = resolved(common("arq_quantize { channel_wise: false }"), per_channel_linear=True).layers
    assert not found["gemm"].weight.channel_wise


def test_a_dilated_convolution_is_not_non_uniform():
    dilated = Layer("d", "Conv", weight_rank=4, dilated=True)
    assert resolved(common("nuq_quantize { }"), dilated, CONV).layers["d"].weight == Arq(channel_wise=True)


def test_int16_needs_a_bias_of_a_gemm():
    bare = Layer("bare", "Gemm", weight_rank=2)
    assert resolved(common("ifmr_quantize { dst_type: INT16 }"), bare).layers["bare"].activation.num_bits == 8


def test_what_has_no_effect_is_told():
    text = """joint_quant: true enable_auto_nuq: true nuq_config { mapping_file: "a" }
    common_config { weight_compress_only: true }"""
    notes = " ".join(resolved(text).notes)
    for name in ("joint_quant", "enable_auto_nuq", "nuq_config.mapping_file", "weight_compress_only"):
        assert f"{name} has no effect" in notes
    assert resolved("").notes == (
        "activations of a Conv3d are symmetric only; for 'conv3d'",
        "the inputs of a MatMul of two variables are symmetric only; for 'two'",
    )


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Conv", {"conv", "dw", "conv3d"}),
        ("Conv2d", {"conv", "dw"}),
        ("Conv2D", {"conv", "dw"}),
        ("DepthwiseConv2D", {"dw"}),
        ("Conv3d", {"conv3d"}),
        ("Conv1d", set()),
        ("Linear", {"gemm", "matmul"}),
        ("Gemm", {"gemm"}),
        ("MatMulV2", {"gemm"}),
        ("MatMul", {"matmul", "two"}),
        ("BatchMatMulV2", {"matmul", "two"}),
        ("ConvTranspose2d", {"up"}),
        ("ConvTranspose1d", set()),
        ("Conv2DTranspose", {"up"}),
        ("AvgPool2d", {"pool"}),
        ("AvgPoolV2", {"pool"}),
        ("MaxPool2d", set()),
        ("LSTM", set()),
    ],
)
def test_types_of_torch_onnx_and_ascend(name, wanted):
    assert {layer.name for layer in ALL if LAYER_TYPES[name].matches(layer)} == wanted
    found = resolved(f'skip_layer_types: "{name}"')
    assert {n for n, s in found.layers.items() if not s.quant_enable} == wanted
    assert (f"the model has no layer of type {name} that could be quantized" in found.notes) == (not wanted)


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        ("/conv1/Conv", "conv1"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/features/features.0/features.0.0/Conv", "features.0.0"),
        ("/encoder/layer.0/self/query/MatMul", "encoder.layer.0.self.query"),
        ("/Flatten", ""),
        ("Conv_0", ""),
        ("a/b/Conv", ""),
        ("/a//Conv", ""),
    ],
)
def test_the_torch_module_of_a_node(node, wanted):
    assert module_path(node) == wanted


def test_a_torch_module_stands_for_its_node():
    layers = [Layer("/layer1/layer1.0/conv1/Conv", "Conv", weight_rank=4), CONV]
    found = resolved('skip_layers: "layer1.0.conv1"', *layers)
    assert [s.quant_enable for s in found.layers.values()] == [False, True]
    assert found.notes == ("'layer1.0.conv1' is the torch module that became the node '/layer1/layer1.0/conv1/Conv'",)
    twice = [Layer("/a/Conv", "Conv", weight_rank=4), Layer("/a/Conv_1", "Conv", weight_rank=4)]
    assert problems('skip_layers: "a"', Layers.of(twice))[0].startswith("line 1: the model has no layer 'a'")


def test_unknown_names_are_errors_with_the_nearest_ones():
    others = {"relu": Layer("relu", "Relu"), "mp": Layer("mp", "MaxPool"), "sum": Layer("sum", "Add")}
    layers = Layers({layer.name: layer for layer in ALL}, others, {"relu": "it stays float"})
    text = """skip_layers: "Opname"
skip_layer_types: "Conv2"
override_layer_types { layer_type: "Optype" calibration_config { } }
override_layer_configs { calibration_config { }
  layer_name: "covn3d" }
override_layer_configs { layer_name: "relu" calibration_config { } }
skip_fusion_layers: "gem"
tensor_quantize { layer_name: "conv" input_index: 0 }
tensor_quantize { layer_name: "mp" input_index: 1 }
tensor_quantize { layer_name: "sum" input_index: 2 }
"""
    found = problems(text, layers)
    assert found[0] == (
        "line 1: the model has no layer 'Opname'; its layers are called 'conv', 'dw', 'conv3d', 'gemm' and 4 more"
    )
    assert found[1].startswith("line 2: AMCT has no layer type 'Conv2'; did you mean 'Conv2d', 'Conv2D'")
    assert found[2].startswith("line 3: AMCT has no layer type 'Optype'; known: Add, AveragePool")
    assert found[3] == "line 5: the model has no layer 'covn3d'; did you mean 'conv3d', 'conv'?"
    assert found[4] == "line 6: layer 'relu' (Relu) stays float: it stays float"
    assert found[5].startswith("line 7: the model has no layer 'gem'; did you mean 'gemm'")
    assert found[6] == "line 8: tensor_quantize is for MaxPool and Add; layer 'conv' is a Conv"
    assert found[7] == "line 9: tensor_quantize: layer 'mp' (MaxPool) has no data input 1"
    assert found[8] == "line 10: tensor_quantize: layer 'sum' (Add) has no data input 2"
    assert len(found) == 9


def test_skipped_layers_stay_float_and_are_not_complained_about():
    text = 'skip_layers: "gemm" skip_layer_types: "Conv3d"' + of_layer("gemm", "arq_quantize { channel_wise: true }")
    found = resolved(text)
    assert {n for n, s in found.layers.items() if not s.quant_enable} == {"gemm", "conv3d"}
    assert not any("conv3d" in note or "gemm" in note for note in found.notes)


def test_tensors():
    others = {"mp": Layer("mp", "MaxPool"), "sum": Layer("sum", "Add")}
    text = """activation_offset: false tensor_quantize { layer_name: "mp" input_index: 0 }
    tensor_quantize { layer_name: "sum" input_index: 1 hfmg_quantize { asymmetric: true } }"""
    found = resolve(parse_config(text), Layers({"conv": CONV}, others))
    assert found.tensors == (
        TensorSettings("mp", 0, Ifmr(asymmetric=False)),
        TensorSettings("sum", 1, Hfmg(asymmetric=True)),
    )


def test_one_input_of_an_addition_is_quantized():
    text = """tensor_quantize { layer_name: "sum" input_index: 0 }
    tensor_quantize { layer_name: "sum" input_index: 1 }"""
    assert problems(text, Layers({}, {"sum": Layer("sum", "Add")})) == [
        "line 2: tensor_quantize names layer 'sum' already in line 1; AMCT quantizes one input"
    ]


# ---- the recipe --------------------------------------------------------------------------------


def test_the_recipe_has_one_rule_per_layer():
    text = (
        'activation_offset: false do_fusion: false skip_fusion_layers: "conv" skip_layers: "dw"\n'
        "fakequant_precision_mode: FORCE_FP16_QUANT\n"
        + common("ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.4 }")
        + of_layer("conv", "arq_quantize { quant_bits: 6 } ifmr_quantize { dst_type: INT16 asymmetric: true }")
        + of_layer("gemm", "nuq_quantize { num_steps: 16 } hfmg_quantize { num_of_bins: 2048 } dmq_balancer { }")
        + of_layer("up", "ada_quantize { num_iteration: 5 beta_range_start: 10 warm_start: 0.1 }")
    )
    config = parse_config(text)
    recipe = to_recipe(config, resolve(config, Layers.of(list(ALL))))
    assert [rule.match.node for rule in recipe.rules] == [layer.name for layer in ALL]
    assert (recipe.target, recipe.fp16_scales, recipe.refine) == ("ascend", True, ())
    assert (recipe.fuse.batchnorm, recipe.fuse.skip_layers) == (False, ("conv",))
    assert not recipe.equalize.depthwise
    assert recipe.calibration.samples is None
    of = {layer.name: recipe.resolve(layer.name, layer.op_type) for layer in ALL}
    assert [name for name, found in of.items() if found.skip] == ["dw"]
    conv, gemm, up = of["conv"], of["gemm"], of["up"]
    assert (conv.activations.type, conv.activations.symmetric, conv.activations.method) == ("int16", False, IFMR())
    assert (conv.weights.bits, conv.weights.granularity) == (6, "per_axis")
    assert conv.weights.method == AbsMax(full_range=True)
    assert (gemm.activations.symmetric, gemm.activations.method) == (True, HFMG(num_of_bins=2048))
    assert (gemm.weights.method, gemm.balance.strength) == (NUQ(num_steps=16, num_of_iteration=1), 0.5)
    ada = AdaRound(scale="kl", num_iteration=5, beta_range=(10.0, 2.0), warm_start=0.1)
    assert (up.weights.method, up.weights.granularity, up.balance) == (ada, "per_axis", None)
    pool = of["pool"].activations.method
    assert pool.search_range == (0.8, 1.2)
    assert pool.search_step == pytest.approx(0.4)
    assert of["matmul"].weights.granularity == "per_tensor"
    assert of["two"].weights.method is None


@pytest.mark.parametrize(("bits", "scale"), [(8, "kl"), (4, "mse")])
def test_the_scale_of_adaround_follows_the_width(bits, scale):
    found = Resolved({"conv": LayerSettings(weight=Ada(channel_wise=True, num_bits=bits))})
    weights = to_recipe(parse_config(""), found).resolve("conv", "Conv").weights
    assert (weights.method.scale, weights.bits) == (scale, None if bits == 8 else bits)


def test_inputs_of_pools_and_sums_are_quantized_by_force():
    config = parse_config('tensor_quantize { layer_name: "mp" input_index: 0 }')
    recipe = to_recipe(config, resolve(config, Layers({}, {"mp": Layer("mp", "MaxPool")})))
    assert recipe.resolve("mp", "MaxPool").force
    assert recipe.resolve("mp", "MaxPool").inputs == (0,)
    assert not recipe.resolve("other", "MaxPool").force


def model():
    text = """agraph (float[2, 3, 8, 8] x) => (float[2, 5] y) {
      c = Conv <kernel_shape = [3, 3]> (x, w)
      d = Conv <kernel_shape = [3, 3], group = 4, dilations = [2, 2]> (c, v, b)
      r = Relu (d)
      p = AveragePool <kernel_shape = [2, 2]> (r)
      f = Flatten (p)
      y = Gemm (f, m, n)
    }"""
    proto = build(text, w=normal(4, 3, 3, 3), v=normal(4, 1, 3, 3), b=normal(4), m=normal(4, 5), n=normal(5))
    for node, name in zip(proto.graph.node, ("first", "second", "relu", "pool", "flat", "head"), strict=True):
        node.name = name
    return proto


def test_the_layers_of_a_model():
    found = layers_of(onnxq.plan_model(model(), recipe={"target": "ascend"}))
    assert list(found.quantizable) == ["first", "second", "pool", "head"]
    assert found.quantizable["first"] == Layer("first", "Conv", 4, 4, in_channels=3)
    assert found.quantizable["second"] == Layer(
        "second", "Conv", 4, 4, 4, dilated=True, depthwise=True, bias=True, in_channels=1
    )
    assert found.quantizable["head"] == Layer("head", "Gemm", 2, 2, bias=True, in_channels=4)
    assert found.quantizable["pool"] == Layer("pool", "AveragePool", None, 4)
    assert list(found.others) == ["relu", "flat"]
    assert found.reasons["relu"]
    assert found.batch == 2


def test_one_input_channel_alone_makes_no_depthwise_convolution():
    proto = build("agraph (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv (x, w) }", w=normal(2, 1, 1, 1))
    (layer,) = layers_of(onnxq.plan_model(proto, recipe={"target": "ascend"})).quantizable.values()
    assert not layer.depthwise


def test_load_config_takes_either_file_and_tells_them_apart(tmp_path):
    cfg, js, recipe = tmp_path / "quant.cfg", tmp_path / "config.json", tmp_path / "recipe.json"
    cfg.write_text(configs.broken(configs.QUANT).replace("Opname", "first").replace("Optype", "AvgPool2d"))
    job = load_config(cfg, model())
    assert (job.batch_num, job.samples(), job.samples(16)) == (2, 4, 32)
    assert {n: s.quant_enable for n, s in job.settings.items()} == {
        "first": False, "second": True, "pool": False, "head": True,
    }  # fmt: skip
    assert job.settings["second"].weight == Arq(channel_wise=False, num_bits=6)
    assert job.settings["head"].weight == Arq(channel_wise=False, num_bits=8)
    from onnxq.dialects.amct.json_config import format_json

    js.write_text(format_json(job.to_json()))
    again = load_config(js, model())
    assert again.settings == job.settings
    assert again.recipe == job.recipe
    recipe.write_text('{"target": "ascend"}')
    assert [is_amct_config(path) for path in (cfg, js, recipe, tmp_path / "absent")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.cfg", "", True),
        ("a.txt", "# c\nbatch_num : 2", True),
        ("a.txt", "common_config {\n}", True),
        ("a.txt", "target: ort\nversion: 1", False),
        ("a.yaml", "batch_num: 2", False),
        ("a.json", '{"activation_offset": true}', True),
        ("a.json", '{"version": 1', False),
        ("a.json", '{"target": "ort", "rules": []}', False),
    ],
)
def test_amct_files_are_told_by_their_content(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text)
    assert is_amct_config(tmp_path / name) is wanted


def test_the_plan_of_the_recipe_is_what_the_settings_say():
    job = prepare(parse_config('skip_layers: "second"'), model())
    plan = onnxq.plan_model(model(), recipe=job.recipe).plan
    quantized = [d.node for d in plan.decisions if d.role == "quantized"]
    assert quantized == [name for name, s in job.settings.items() if s.quant_enable] == ["first", "pool", "head"]
    specs = {w.node: w.spec for w in plan.weights}
    assert np.array_equal([specs[n].symmetric for n in ("first", "head")], [True, True])
    assert all(isinstance(a.method, IFMR) and not a.spec.symmetric for a in plan.activations.values())
