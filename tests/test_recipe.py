from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq._recipe import docgen
from onnxq.algos.activation import METHODS
from onnxq.errors import RecipeError
from onnxq.recipe import (
    IFMR,
    KL,
    ActivationConfig,
    BiasCorrection,
    ImagePreprocess,
    Recipe,
    Selector,
    TensorConfig,
    WeightConfig,
    WeightRounding,
)

ROOT = Path(__file__).parents[1]


# reading and writing


def test_the_default_recipe() -> None:
    recipe = Recipe()
    assert recipe == Recipe.from_dict({}) == Recipe.from_text("version: 1")
    assert recipe.target == "ort"
    assert recipe.refine == (BiasCorrection(),)
    assert recipe.activations == ActivationConfig()
    assert recipe.to_dict(defaults=False) == {"version": 1}
    assert hash(recipe) == hash(Recipe())


DIMENSION = st.integers(1, 300)
TENSOR = {
    "type": st.sampled_from(["int8", "uint8", "int16", "uint16"]),
    "bits": st.integers(2, 8),
    "symmetric": st.booleans(),
    "narrow": st.booleans(),
    "granularity": st.one_of(
        st.sampled_from(["per_tensor", "per_axis"]),
        st.fixed_dictionaries({"per_block": st.fixed_dictionaries({"size": DIMENSION, "axis": st.integers(-3, 3)})}),
    ),
}
ACTIVATIONS = st.fixed_dictionaries(
    {},
    optional={
        **TENSOR,
        "method": st.one_of(
            st.sampled_from(["minmax", "percentile", "kl", "mse", "ifmr", "hfmg", {"name": "kl", "num_bins": 512}]),
            st.fixed_dictionaries({"name": st.just("percentile"), "percentile": st.floats(50.1, 100)}),
            st.fixed_dictionaries({"name": st.just("ifmr"), "search_step": st.floats(0.001, 0.5)}),
        ),
    },
)
WEIGHT_METHODS = ["absmax", "mse", "adaround", "nuq"]
WEIGHTS = st.fixed_dictionaries({}, optional={**TENSOR, "method": st.sampled_from(WEIGHT_METHODS)})
NAME = st.text("abC*?/._0", min_size=1, max_size=4)
SELECTOR = st.one_of(*(st.fixed_dictionaries({key: NAME}) for key in ("node", "name", "op_type")))
RULE = st.one_of(
    st.fixed_dictionaries({"match": SELECTOR, "skip": st.booleans()}),
    st.fixed_dictionaries({"match": SELECTOR, "activations": ACTIVATIONS, "weights": WEIGHTS}),
)
RECIPE = st.fixed_dictionaries(
    {},
    optional={
        "target": st.sampled_from(["ort", "tensorrt", "qnn", "ascend", "kirin"]),
        "activations": ACTIVATIONS,
        "weights": WEIGHTS,
        "rules": st.lists(RULE, max_size=3),
        "skip": st.lists(NAME, max_size=2),
        "balance": st.one_of(st.none(), st.just({"strength": 0.3})),
        "calibration": st.fixed_dictionaries(
            {}, optional={"samples": DIMENSION, "preprocess": st.just({"size": 8, "mean": 0.5, "std": [1, 2, 3]})}
        ),
        "refine": st.lists(st.sampled_from(["bias_correction", "weight_rounding"]), max_size=2),
    },
)


@settings(max_examples=60, deadline=None)
@given(RECIPE)
def test_every_form_reads_back_the_same(content: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(content)
    for defaults in (True, False):
        assert Recipe.from_dict(recipe.to_dict(defaults=defaults)) == recipe
        assert Recipe.from_text(recipe.to_yaml(defaults=defaults)) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict(recipe.to_dict()).digest() == recipe.digest()


def test_files_are_yaml_or_json(tmp_path: Path) -> None:
    content = {"target": "qnn", "skip": ["Ünïcode/*"], "equalize": {"enabled": True, "tolerance": 1e-05}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    (tmp_path / "r.json").write_text(json.dumps(content, indent="\t"), encoding="utf-8")
    assert Recipe.from_file(tmp_path / "r.yaml") == Recipe.from_file(str(tmp_path / "r.json"))
    assert Recipe.from_file(tmp_path / "r.json").skip == ("Ünïcode/*",)
    assert Recipe.from_text("equalize: {tolerance: 1e-5}").equalize.tolerance == 1e-5
    assert Recipe.from_text("activations:\nskip:\n") == Recipe()


def test_names_stand_for_mappings_and_numbers_for_lists() -> None:
    recipe = Recipe.from_dict(
        {
            "activations": {"method": "kl"},
            "refine": ["bias_correction", {"kind": "weight_rounding", "method": "gptq"}],
            "calibration": {"preprocess": {"size": 224, "crop": [200, 100], "mean": 0.5}},
        }
    )
    assert recipe.activations.method == KL()
    assert recipe.refine == (BiasCorrection(), WeightRounding())
    assert recipe.calibration.preprocess == ImagePreprocess(size=(224, 224), crop=(200, 100), mean=(0.5,))


def test_digest_is_of_what_decides_the_result() -> None:
    base = Recipe()
    assert base.digest() == Recipe.from_text("{weights: {}, target: ort}").digest()
    assert len(base.digest()) == 64
    same = Recipe.from_dict({"calibration": {"batch_size": 7, "memory_budget_mb": 99}})
    assert same.digest() == base.digest()
    others = [
        {"target": "qnn"},
        {"calibration": {"samples": 3}},
        {"refine": []},
        {"weights": {"bits": 7}},
        {"skip": ["a"]},
        {"rules": [{"match": {"node": "a"}, "skip": True}]},
        {"balance": {}},
    ]
    assert len({base.digest(), *(Recipe.from_dict(other).digest() for other in others)}) == 8


def test_methods_have_the_parameters_of_their_algorithms() -> None:
    for name, info in METHODS.items():
        method = ActivationConfig(method={"name": name}).method  # type: ignore[arg-type]
        assert method is not None
        assert info.config(**method.parameters()) == info.config(), name
    assert set(METHODS) == set(json_names("ActivationConfig"))
    changed = IFMR(search_range=(0.5, 1.5), two_sided=True).parameters()
    assert (changed["search_start"], changed["search_end"], changed["two_sided"]) == (0.5, 1.5, True)


def json_names(part: str) -> list[str]:
    return Recipe.json_schema()["$defs"][part]["properties"]["method"]["anyOf"][0]["enum"]  # type: ignore[index]


# rules


def recipe(*rules: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.from_dict({"rules": list(rules), **more})


def test_rules_merge_field_by_field_from_weak_to_strong() -> None:
    wanted = recipe(
        {"match": {"node": "a/conv"}, "weights": {"symmetric": False}},
        {"match": {"name": "a/*"}, "weights": {"symmetric": True, "bits": 6, "method": "mse"}},
        {"match": {"op_type": "Conv"}, "weights": {"bits": 5, "narrow": True, "granularity": "per_tensor"}},
        weights={"type": "int8", "bits": 7, "granularity": "per_axis"},
        activations={"method": "kl"},
    )
    found = wanted.resolve("a/conv", "Conv")
    assert found.weights == WeightConfig(
        type="int8", bits=6, narrow=True, granularity="per_tensor", symmetric=False, method={"name": "mse"}
    )
    assert found.activations == wanted.activations
    assert wanted.resolve("b", "Conv").weights.bits == 5
    assert wanted.resolve("b", "Gemm").weights == wanted.weights


def test_within_a_level_the_last_rule_wins() -> None:
    wanted = recipe(
        {"match": {"name": "*a"}, "activations": {"method": {"name": "kl", "num_bins": 512}}},
        {"match": {"name": "a*"}, "activations": {"method": "kl"}},
    )
    assert wanted.resolve("a", "Conv").activations.method == KL()
    assert wanted.resolve("ba", "Conv").activations.method == KL(num_bins=512)


@pytest.mark.parametrize(
    ("base", "own", "merged"),
    [
        ({"type": "int8", "bits": 4}, {"type": "uint8"}, ("uint8", None)),
        ({"type": "int8", "bits": 4}, {"bits": 6}, ("int8", 6)),
        ({"type": "uint8"}, {"bits": 12}, ("uint16", 12)),
        ({"type": "int4"}, {"bits": 5}, ("int8", 5)),
        ({"bits": 4}, {"type": "uint16"}, ("uint16", None)),
        ({}, {"bits": 12}, (None, 12)),
    ],
)
def test_type_and_bits_go_together(base: dict[str, Any], own: dict[str, Any], merged: tuple[Any, Any]) -> None:
    result = TensorConfig(**own).over(TensorConfig(**base))
    assert (result.type, result.bits) == merged


def test_skip_and_quantize_follow_the_precedence() -> None:
    wanted = recipe(
        {"match": {"op_type": "Conv"}, "skip": True},
        {"match": {"node": "keep"}, "skip": False},
        {"match": {"node": "force"}, "quantize": True, "weights": {"bits": 4}},
        {"match": {"name": "force"}, "skip": True},
        {"match": {"op_type": "Softmax"}, "quantize": True},
        {"match": {"name": "plain*"}, "quantize": False},
    )

    def decision(name: str, op_type: str) -> tuple[bool, bool, str]:
        found = wanted.resolve(name, op_type)
        return found.skip, found.force, found.reason

    assert decision("x", "Conv") == (True, False, "rules[0] of the recipe (op_type 'Conv')")
    assert decision("keep", "Conv") == (False, False, "")
    assert decision("force", "Conv") == (False, True, "rules[2] of the recipe (node 'force')")
    assert decision("s", "Softmax") == (False, True, "rules[4] of the recipe (op_type 'Softmax')")
    assert decision("plain1", "Softmax") == (False, False, "")
    assert decision("x", "Gemm") == (False, False, "")


def test_the_skip_list_takes_names_globs_and_types() -> None:
    wanted = recipe(
        {"match": {"node": "kept"}, "quantize": True},
        {"match": {"node": "block/1/conv"}, "quantize": True},
        {"match": {"node": "last"}, "quantize": True},
        skip=["Conv", "block/*", "odd[1]", "head", "last"],
    )
    assert wanted.resolve("last", "Gemm").skip
    assert wanted.resolve("any", "Conv").reason == "the recipe skips 'Conv'"
    assert wanted.resolve("Conv", "Gemm").skip
    assert wanted.resolve("block/2/conv", "Gemm").skip
    assert wanted.resolve("odd[1]", "Gemm").skip
    assert wanted.resolve("odd1", "Gemm").skip
    assert wanted.resolve("head", "Gemm").skip
    assert not wanted.resolve("header", "Gemm").skip
    assert not wanted.resolve("kept", "Conv").skip
    assert not wanted.resolve("block/1/conv", "Gemm").skip


NODES = [("stem/conv", "Conv"), ("block1/conv", "Conv"), ("head", "Gemm"), ("odd[1]", "Add")]


def test_names_that_match_nothing_are_told_with_near_ones() -> None:
    wanted = recipe(
        {"match": {"node": "stem/cnv"}, "skip": True},
        {"match": {"name": "blok*"}, "skip": True},
        {"match": {"op_type": "Gem"}, "skip": True},
        {"match": {"op_type": "Softmax"}, "skip": True},
        skip=["heat", "odd[1]", "block?/*", "Add", "Softmax", "x*"],
        fuse={"skip_layers": ["stem", "stem*"]},
    )
    with pytest.raises(RecipeError) as caught:
        wanted.check_names(NODES, op_types={"Softmax"})
    assert str(caught.value).splitlines()[1:] == [
        "  rules[0].match.node: 'stem/cnv' matches nothing in the model; did you mean 'stem/conv', 'block1/conv'?",
        "  rules[1].match.name: 'blok*' matches nothing in the model; did you mean 'block1/conv'?",
        "  rules[2].match.op_type: 'Gem' matches nothing in the model; did you mean 'Gemm'?",
        "  skip[0]: 'heat' matches nothing in the model; did you mean 'head'?",
        "  skip[5]: 'x*' matches nothing in the model",
        "  fuse.skip_layers[0]: 'stem' matches nothing in the model; did you mean 'stem/conv'?",
    ]
    recipe({"match": {"name": "stem*"}, "skip": True}, skip=["Conv", "head"]).check_names(NODES)


def test_resolving_many_nodes_costs_little() -> None:
    wanted = recipe(*({"match": {"node": f"n{i}"}, "weights": {"bits": 4}} for i in range(1000)))
    resolved = [wanted.resolve(f"n{i}", "Conv") for i in range(20000)]
    assert sum(s.weights.bits == 4 for s in resolved) == 1000
    assert len({id(s) for s in resolved}) == 1001


def test_copies_resolve_as_their_own_rules_say() -> None:
    wanted = recipe({"match": {"node": "a"}, "skip": True})
    assert wanted.resolve("a", "Conv").skip
    assert not wanted.model_copy(update={"rules": ()}).resolve("a", "Conv").skip
    for same in (wanted.replace(), copy.copy(wanted), copy.deepcopy(wanted)):
        assert same == wanted
        assert same.resolve("a", "Conv").skip
        assert not same.resolve("b", "Conv").skip


def test_selectors_name_themselves() -> None:
    assert str(Selector(name="a*")) == "name 'a*'"
    assert (Selector(op_type="Conv").level, Selector(op_type="Conv").value) == ("op_type", "Conv")


# what is published


def test_schema_describes_every_key() -> None:
    schema = Recipe.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    parts = [schema, *schema["$defs"].values()]  # type: ignore[attr-defined]
    for part in parts:
        assert part["additionalProperties"] is False
        assert part["description"]
        for key, value in part["properties"].items():
            assert key in ("name", "kind", "per_block") or value["description"], key
    assert json_names("WeightConfig") == WEIGHT_METHODS
    json.dumps(schema)


def test_the_reference_is_current_and_its_example_works() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == docgen.render(), (
        "run python -m onnxq._recipe.docgen docs/recipe.md"
    )
    assert Recipe.from_text(docgen.EXAMPLE).resolve("m", "MatMul").weights.bits == 4


def test_importing_the_recipe_is_light() -> None:
    code = "import sys, onnxq.recipe; print([m for m in ('onnx', 'onnxruntime', 'numba', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
