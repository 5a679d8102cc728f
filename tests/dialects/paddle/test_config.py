"""QuantConfig: which call counts for which node, what is refused, and recipes from it and back."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import onnx
import pytest

from onnxq.dialects.paddle import PTQ, QuantConfig, QuantizedColumnParallelLinear, QuantizedRowParallelLinear, nn
from onnxq.dialects.paddle.convert import prepare
from onnxq.dialects.paddle.observers import (
    AbsMaxChannelWiseWeightObserver,
    AVGObserver,
    EMDObserver,
    HistObserver,
    KLObserver,
    MSEChannelWiseWeightObserver,
    MSEObserver,
)
from onnxq.dialects.paddle.patterns import Op
from onnxq.dialects.paddle.resolve import scopes_of
from onnxq.errors import RecipeError
from onnxq.pipeline import plan_model
from onnxq.recipe import Recipe
from tests.dialects.paddle.models import projections, scoped

WEIGHT = MSEChannelWiseWeightObserver()
LEVELS = ("global", "scope", "type", "name", "layer")
"""From the weakest to the strongest."""
OBSERVERS = {
    "global": AVGObserver(),
    "scope": EMDObserver(),
    "type": HistObserver(),
    "name": KLObserver(),
    "layer": MSEObserver(),
}
NODE, OTHER = "net/block1/conv", "net/block2/conv"


def call(config: QuantConfig, level: str, activation: object, weight: object) -> None:
    """One call of a configuration that is for the first convolution."""
    node = scoped().graph.node[0]
    {
        "scope": partial(config.add_name_config, "net/block1"),
        "type": partial(config.add_type_config, nn.Conv2D),
        "name": partial(config.add_name_config, NODE),
        "layer": partial(config.add_layer_config, node),
    }[level](activation=activation, weight=weight)


def configured(levels: tuple[str, ...], empty: str = "") -> QuantConfig:
    """A configuration with calls on these levels; the one of level `empty` is None/None."""
    given = OBSERVERS["global"] if "global" in levels and empty != "global" else None
    config = QuantConfig(given, None if given is None else WEIGHT)
    for level in levels:
        if level != "global":
            call(config, level, *((None, None) if level == empty else (OBSERVERS[level], WEIGHT)))
    return config


def subsets() -> list[tuple[str, ...]]:
    return [s for size in range(len(LEVELS) + 1) for s in itertools.combinations(LEVELS, size)]


@pytest.mark.parametrize("levels", subsets(), ids="+".join)
@pytest.mark.parametrize("order", [1, -1], ids=["weak first", "strong first"])
def test_the_strongest_level_counts_whatever_the_order_of_calls(levels: tuple[str, ...], order: int) -> None:
    found = configured(levels[::order]).to_recipe(scoped()).resolve(NODE, "Conv")
    if not levels:
        assert found.skip
        return
    strongest = max(levels, key=LEVELS.index)
    assert not found.skip
    assert found.activations.method == OBSERVERS[strongest].activation_config().method
    assert found.weights.method == WEIGHT.weight_config().method


@pytest.mark.parametrize("levels", [s for s in subsets() if s], ids="+".join)
def test_none_and_none_leaves_float_on_every_level(levels: tuple[str, ...]) -> None:
    """The strongest call is None/None; taken away, the next one counts."""
    strongest = max(levels, key=LEVELS.index)
    assert configured(levels, empty=strongest).to_recipe(scoped()).resolve(NODE, "Conv").skip
    weakest = min(levels, key=LEVELS.index)
    if weakest != strongest:
        assert not configured(levels, empty=weakest).to_recipe(scoped()).resolve(NODE, "Conv").skip


@pytest.mark.parametrize("level", LEVELS[1:])
def test_on_one_level_the_later_call_counts(level: str) -> None:
    config = QuantConfig()
    call(config, level, HistObserver(), WEIGHT)
    call(config, level, KLObserver(), WEIGHT)
    assert config.to_recipe(scoped()).resolve(NODE, "Conv").activations.method.name == "kl"
    call(config, level, None, None)
    assert config.to_recipe(scoped()).resolve(NODE, "Conv").skip
    call(config, level, HistObserver(), WEIGHT)
    assert not config.to_recipe(scoped()).resolve(NODE, "Conv").skip


def test_lists_configure_all_that_is_in_them() -> None:
    nodes = scoped().graph.node
    for add, wanted in (
        (QuantConfig.add_layer_config, [nodes[0], OTHER]),
        (QuantConfig.add_name_config, [NODE, OTHER]),
        (QuantConfig.add_type_config, [nn.Conv2D, "Gemm"]),
    ):
        config = QuantConfig()
        add(config, wanted, activation=KLObserver(), weight=WEIGHT)
        recipe = config.to_recipe(scoped())
        assert not recipe.resolve(NODE, "Conv").skip
        assert not recipe.resolve(OTHER, "Conv").skip
        assert recipe.resolve("net/pool", "GlobalAveragePool").skip
        assert recipe.resolve("net/head/fc", "Gemm").skip == (add is not QuantConfig.add_type_config)


def test_a_name_is_exact_and_a_scope_holds_for_what_is_in_it() -> None:
    config = QuantConfig()
    config.add_name_config("net/block2", KLObserver(), WEIGHT)
    recipe = config.to_recipe(scoped())
    assert recipe.resolve(OTHER, "Conv").activations.method.name == "kl"
    assert recipe.resolve("net/block2/add", "Add").activations.method.name == "kl"
    assert recipe.resolve(NODE, "Conv").skip
    config.add_name_config("net/block", KLObserver(), WEIGHT)
    with pytest.raises(RecipeError, match=r"'net/block' is not in the model; did you mean 'net/block2'"):
        config.to_recipe(scoped())


def test_the_innermost_scope_counts_and_a_slash_in_front_does_not() -> None:
    config = QuantConfig()
    config.add_name_config("/net/block1", HistObserver(), WEIGHT)
    config.add_name_config("net", KLObserver(), WEIGHT)
    recipe = config.to_recipe(scoped())
    assert recipe.resolve(NODE, "Conv").activations.method.name == "percentile"
    assert recipe.resolve(OTHER, "Conv").activations.method.name == "kl"
    assert tuple(scopes_of("/a/b.c/d")) == ("a/b.c", "a/b", "a")


def test_a_layer_without_a_name_is_found_by_what_it_computes() -> None:
    model = scoped()
    for node in model.graph.node:
        node.name = ""
    config = QuantConfig()
    config.add_layer_config(model.graph.node[2], KLObserver(), WEIGHT)
    convolutions = [d.node for d in plan_model(model).plan.decisions if d.op_type == "Conv"]
    recipe = config.to_recipe(model)
    assert [recipe.resolve(name, "Conv").skip for name in convolutions] == [True, False]


def test_types_are_patterns() -> None:
    config = QuantConfig()
    config.add_type_config(nn.Linear, KLObserver(), WEIGHT)
    recipe = config.to_recipe(projections())
    assert recipe.resolve("/up/MatMul", "Gemm").activations.method.name == "kl"
    assert recipe.resolve("/down/Gemm", "Gemm").skip  # a row-parallel one is another type
    config.add_type_config(nn.RowParallelLinear, HistObserver(), WEIGHT)
    assert config.to_recipe(projections()).resolve("/down/Gemm", "Gemm").activations.method.name == "percentile"


def test_a_pattern_of_the_users() -> None:
    residual = Op("Conv", ranks={1: 4}) >> Op("Add")
    config = QuantConfig()
    config.add_type_config(residual, KLObserver(), WEIGHT)
    recipe = config.to_recipe(scoped())
    assert recipe.resolve(OTHER, "Conv").activations.method.name == "kl"
    assert recipe.resolve(NODE, "Conv").skip


def test_a_customized_leaf_hides_the_types_inside() -> None:
    class Residual(nn.Layer):
        """A convolution and the sum behind it."""

        pattern = Op("Conv") >> Op("Add")

    config = QuantConfig()
    config.add_customized_leaf(Residual)
    config.add_type_config(Residual, KLObserver(), WEIGHT)
    config.add_type_config(nn.Conv2D, HistObserver(), WEIGHT)
    recipe = config.to_recipe(scoped())
    assert recipe.resolve(OTHER, "Conv").activations.method.name == "kl"
    assert recipe.resolve(NODE, "Conv").activations.method.name == "percentile"


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda c: c.add_type_config("Cnv", KLObserver(), WEIGHT), r"no operator type 'Cnv'; did you mean 'Conv'"),
        (lambda c: c.add_type_config(nn.Embedding, KLObserver(), WEIGHT), r"Embedding\): the model has no such"),
        (lambda c: c.add_name_config("net/pol", KLObserver(), WEIGHT), r"'net/pol' is not in the model; .*'net/pool'"),
        (lambda c: c.add_layer_config("net/block1/cnv", KLObserver()), r"add_layer_config: .* did you mean"),
        (lambda c: c.add_name_config([NODE, "a1", "b2"], KLObserver(), WEIGHT), r"2 problems in the QuantConfig"),
        (lambda c: c.add_name_config(NODE, KLObserver()), rf"'{NODE}': .* for the activation and none for the weight"),
        (lambda c: c.add_name_config(["net/head/fc", OTHER], KLObserver(), KLObserver()), "KLObserver is for act"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(add: object, message: str) -> None:
    config = QuantConfig()
    add(config)
    with pytest.raises(RecipeError, match=message):
        config.to_recipe(scoped())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantConfig(activation="mse"), r"QuantConfig\(activation\) found 'mse'; must be an observer"),
        (lambda: QuantConfig().add_type_config(int), r"add_type_config\(layer_type\) found the class int"),
        (lambda: QuantConfig().add_name_config(3), r"add_name_config\(layer_name\) found 3; must be a name"),
        (lambda: QuantConfig().add_layer_config([None]), r"found None; must be a node of the model or a name"),
        (lambda: QuantConfig().add_qat_layer_mapping(nn.Linear, 3), r"add_qat_layer_mapping\(target\) found 3"),
        (lambda: QuantConfig().add_customized_leaf(""), r"add_customized_leaf\(layer_type\) found ''"),
        (nn.Linear, "Linear is a type for configurations and has no instances"),
        (Op, "at least one operator type"),
        (lambda: QuantizedRowParallelLinear(["x"], parts=0), "parts found 0"),
    ],
)
def test_what_is_no_argument_is_refused_at_once(make: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_types_that_only_some_models_have_may_stand_beside_others() -> None:
    config = QuantConfig()
    config.add_type_config([nn.Linear, nn.ColumnParallelLinear, nn.RowParallelLinear], MSEObserver(), MSEObserver())
    recipe = config.to_recipe(scoped())
    assert [r.match.node for r in recipe.rules if not r.skip] == ["net/head/fc"]
    assert recipe.resolve("net/head/fc", "Gemm").weights.granularity == "per_tensor"


def test_ptq_takes_a_copy() -> None:
    config = QuantConfig()
    config.add_name_config(NODE, KLObserver(), WEIGHT)
    ptq, copied = PTQ(config), copy.deepcopy(config)
    config.add_name_config(NODE)
    assert copied.to_recipe(scoped()).resolve(NODE, "Conv").skip is False
    assert ptq.quantize(scoped()).stage.prepared.recipe.resolve(NODE, "Conv").skip is False
    assert config.to_recipe(scoped()).resolve(NODE, "Conv").skip is True


def test_an_operator_that_the_backend_would_leave_float_is_quantized_when_it_is_asked_for() -> None:
    quantized = QuantConfig(KLObserver(), WEIGHT)
    quantized.add_type_config(nn.AdaptiveAvgPool2D, HistObserver())
    quantized.add_name_config(["net/block1", "net/block2", "net/head"])
    recipe = quantized.to_recipe(scoped())
    roles = {d.node: d.role for d in plan_model(scoped(), recipe=recipe).plan.decisions}
    assert roles.pop("net/pool") == "quantized"
    assert "quantized" not in roles.values()


def test_weights_alone() -> None:
    recipe = QuantConfig(weight=AbsMaxChannelWiseWeightObserver()).to_recipe(scoped())
    assert recipe.scheme.kind == "weight_only"
    plan = plan_model(scoped(), recipe=recipe).plan
    assert not plan.activations
    assert {w.node for w in plan.weights} == {NODE, OTHER, "net/head/fc"}


def test_the_base_holds_for_what_a_configuration_has_no_words_for() -> None:
    base = Recipe(target="tensorrt", refine=())
    recipe = QuantConfig(KLObserver(), WEIGHT).to_recipe(scoped(), base=base)
    assert (recipe.target, recipe.refine) == ("tensorrt", ())
    assert recipe.activations == KLObserver().activation_config()
    assert recipe.rules == ()


# ---- mappings


@pytest.mark.parametrize("target", [QuantizedColumnParallelLinear, QuantizedRowParallelLinear])
def test_a_mapping_hands_its_configuration_on(target: type) -> None:
    config = QuantConfig()
    config.add_qat_layer_mapping(nn.Linear, partial(target, parts=2))
    config.add_type_config(nn.Linear, KLObserver(), WEIGHT)
    found = prepare(config, scoped())
    assert tuple(found.mapped) == ("net/head/fc",)
    parts = {r.match.node for r in found.recipe.rules if not r.skip and r.weights is not None}
    assert parts == {"net/head/fc/part0", "net/head/fc/part1"}
    with pytest.raises(RecipeError, match=r"add_qat_layer_mapping changes 'net/head/fc'"):
        config.to_recipe(scoped())


def test_a_mapping_of_layers_that_are_not_configured_does_nothing() -> None:
    config = QuantConfig()
    config.add_qat_layer_mapping(nn.Linear, partial(QuantizedRowParallelLinear, parts=2))
    config.add_type_config(nn.Conv2D, KLObserver(), WEIGHT)
    assert prepare(config, scoped()).mapped == {}
    assert config.to_recipe(scoped()).resolve("net/head/fc", "Gemm").skip


def test_a_target_that_gives_no_pass_is_refused() -> None:
    config = QuantConfig(KLObserver(), WEIGHT)
    config.add_qat_layer_mapping(nn.Linear, lambda layer, q_config: 3)
    with pytest.raises(RecipeError, match=r"gives int; must give an onnxq\.Pass"):
        PTQ(config).quantize(scoped())


# ---- from recipes


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"activations": {"type": "int8", "symmetric": True, "method": "kl"}, "weights": {"method": "mse"}},
        {"rules": [{"match": {"op_type": "Gemm"}, "skip": True}]},
        {"rules": [{"match": {"op_type": "Conv"}, "activations": {"method": "kl"}}], "skip": [NODE]},
        {"rules": [{"match": {"node": NODE}, "weights": {"bits": 4}}, {"match": {"node": NODE}, "skip": True}]},
        {"rules": [{"match": {"name": OTHER}, "activations": {"bits": 6}}], "skip": ["Add"]},
        {"scheme": "weight_only", "weights": {"bits": 4}},
    ],
    ids=str,
)
def test_a_recipe_comes_back(content: dict[str, object]) -> None:
    recipe = Recipe.from_dict(content)
    again = QuantConfig.from_recipe(recipe).to_recipe(scoped())
    assert plan_model(scoped(), recipe=again).plan == plan_model(scoped(), recipe=recipe).plan or _same(recipe, again)
    assert again.scheme == recipe.scheme


def _same(first: Recipe, second: Recipe) -> bool:
    """Whether two plans say the same but for the words of why something stays float."""
    plans = [plan_model(scoped(), recipe=r).plan for r in (first, second)]
    return (
        plans[0].activations == plans[1].activations
        and plans[0].weights == plans[1].weights
        and [(d.node, d.role) for d in plans[0].decisions] == [(d.node, d.role) for d in plans[1].decisions]
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"target": "qnn", "refine": []}, ["target", "refine"]),
        ({"skip": ["net/*"]}, [r"skip\[0\]: a glob"]),
        ({"rules": [{"match": {"name": "*conv"}, "skip": True}]}, [r"rules\[0\]\.match\.name: a glob"]),
        ({"rules": [{"match": {"node": NODE}, "quantize": True}]}, [r"rules\[0\]\.quantize"]),
        (
            {"rules": [{"match": {"op_type": "Conv"}, "weights": {"bits": 4}},
                       {"match": {"node": NODE}, "activations": {"method": "kl"}}]},
            [r"rules\[1\]: is laid over the rules by op_type"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_configuration_has_no_words_for_is_named(content: dict[str, object], named: list[str]) -> None:
    for part in named:
        with pytest.raises(RecipeError, match=part):
            QuantConfig.from_recipe(Recipe.from_dict(content))


# ---- patterns


def test_matches_share_no_node() -> None:
    model = projections()
    pair = Op("MatMul", "Gemm") >> Op("Add", "Relu")
    assert [[n.name for n in path] for path in pair.matches(model)] == [["/up/MatMul", "/up/Add"]]
    either = Op("Relu") | Op("Add") >> Op("Relu")
    assert [[n.name for n in path] for path in either.matches(model)] == [["/up/Add", "/act/Relu"]]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (Op("Gemm", attributes={"transB": 1}), 0),
        (Op("Gemm", attributes={"transB": 0}), 1),  # a default that is not written
        (Op("Gemm", attributes={"alpha": lambda a: a > 0.5}), 1),
        (Op("Gemm", "MatMul", constants=(1,)), 2),
        (Op("Gemm", "MatMul", constants=(0,)), 0),
        (Op("Add", ranks={1: 1}), 1),
        (Op("Add", ranks={1: 2}), 0),
        (Op("MatMul").named("/up/*"), 1),
        (Op("MatMul").named("/down/*"), 0),
        (Op("Gemm").mentioning("RowParallelLinear"), 1),
        (Op("Gemm").not_mentioning("row-parallel"), 0),
    ],
)
def test_what_a_node_must_be(pattern: Op, count: int) -> None:
    assert len(pattern.matches(projections())) == count


def test_matching_changes_nothing() -> None:
    model = projections()
    before = model.SerializeToString(deterministic=True)
    nn.Linear.pattern.matches(model)
    nn.LayerNorm.pattern.matches(model)
    assert model.SerializeToString(deterministic=True) == before


def test_parallel_layers_by_name() -> None:
    config = QuantConfig()
    config.add_type_config(nn.ColumnParallelLinear.of("/up/*"), KLObserver(), WEIGHT)
    assert config.to_recipe(projections()).resolve("/up/MatMul", "Gemm").activations.method.name == "kl"
    assert [n.op_type for n in nn.RowParallelLinear.pattern.matches(projections())[0]] == ["Gemm"]


def test_the_types_of_a_norm() -> None:
    text = (
        "g (float[N,6] x) => (float[N,6] y) { m = ReduceMean <axes=[-1]> (x) d = Sub(x, m) p = Mul(d, d) "
        "v = ReduceMean <axes=[-1]> (p) e = Add(v, E) s = Sqrt(e) n = Div(d, s) g = Mul(n, W) y = Add(g, B) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    assert [len(path) for path in nn.LayerNorm.pattern.matches(model)] == [9]
