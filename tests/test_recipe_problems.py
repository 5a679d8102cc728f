from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from onnxq.errors import RecipeError
from onnxq.recipe import Recipe, Rule, WeightConfig


def problems(content: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(content)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


def test_all_problems_are_told_with_path_value_and_hint() -> None:
    assert problems(
        {
            "targt": "x",
            "target": "tensort",
            "activations": {"bits": 99, "method": {"name": "percentile", "percentile": 0.999, "foo": 1}},
            "weights": {"granularity": {"per_block": {"siz": 3}}},
            "rules": [{"match": {"node": "a", "name": "b"}, "skip": True}, {"match": {"nod": "a"}}, 5],
            "fuse": {"batchnorm": "yes"},
            "calibration": {"samples": 0, "seed": 1.5, "preprocess": {"crop": [1, 2, 3], "std": []}},
            "refine": ["bias_corection", {"samples": 1}, {"kind": "weight_rounding", "method": "gptqq"}],
        }
    ) == [
        "target: found 'tensort'; must be 'ort', 'tensorrt', 'qnn', 'ascend' or 'kirin'; did you mean 'tensorrt'?",
        "activations.bits: found 99; must be less than or equal to 16",
        "activations.method.percentile: found 0.999; must be greater than 50",
        "activations.method.foo: unknown key (its value is 1); known keys: name, percentile, both_ends",
        "weights.granularity.per_block.size: is missing",
        "weights.granularity.per_block.siz: unknown key (its value is 3); did you mean 'size'?",
        "rules[0].match: needs exactly one of node, name, op_type; found name, node",
        "rules[1].match.nod: unknown key (its value is 'a'); did you mean 'node'?",
        "rules[2]: found 5; must be a mapping",
        "fuse.batchnorm: found 'yes'; must be a valid boolean",
        "calibration.samples: found 0; must be greater than or equal to 1",
        "calibration.seed: found 1.5; must be a valid integer",
        "calibration.preprocess.crop: found [1, 2, 3]; must be a list of 2",
        (
            "refine[0]: found 'bias_corection'; must be one of 'bias_correction', 'weight_rounding'; "
            "did you mean 'bias_correction'?"
        ),
        "refine[1]: found {'samples': 1}; must be a name, or a mapping with the key 'kind'",
        "refine[2].method.name: found 'gptqq'; must be 'gptq'; did you mean 'gptq'?",
        "targt: unknown key (its value is 'x'); did you mean 'target'?",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"version": 2}, "version: found 2; must be 1"),
        ({"skip": "Conv"}, "skip: found 'Conv'; must be a list"),
        ({"skip": [1]}, "skip[0]: found 1; must be a valid string"),
        ({"fuse": 3}, "fuse: found 3; must be a mapping"),
        (
            {"activations": {"method": "klx"}},
            (
                "activations.method: found 'klx'; must be one of 'minmax', 'percentile', "
                "'kl', 'mse', 'output_mse', 'ifmr', 'hfmg', 'removal_outlier', 'avg', 'emd', 'custom'; "
                "did you mean 'kl'?"
            ),
        ),
        (
            {"activations": {"method": {"kl": 1}}},
            ("activations.method: found {'kl': 1}; must be a name, or a mapping with the key 'name'"),
        ),
        ({"weights": {"bits": 1}}, "weights.bits: 1 is for weights of scheme weight_only; use 2 to 16"),
        (
            {"scheme": "weight_only", "rules": [{"match": {"op_type": "Conv"}, "activations": {"bits": 1}}]},
            "rules[0].activations.bits: 1 is for weights of scheme weight_only; use 2 to 16",
        ),
        ({"activations": {"bits": 16, "type": "int8"}}, "activations: bits found 16; do not fit into type int8"),
        (
            {"weights": {"granularity": "per_chanel"}},
            ("weights.granularity: found 'per_chanel'; must be 'per_tensor' or 'per_axis'; did you mean 'per_axis'?"),
        ),
        (
            {"weights": {"method": {"name": "mse", "search_range": [1, 0.5]}}},
            ("weights.method: search_range found [1.0, 0.5]; must be two numbers with 0 < start < end"),
        ),
        (
            {"activations": {"method": {"name": "ifmr", "search_step": 1}}},
            ("activations.method: search_step found 1.0; must be > 0 and at most 0.6, the length of search_range"),
        ),
        (
            {"activations": {"method": {"name": "hfmg", "num_of_bins": 100}}},
            ("activations.method.num_of_bins: found 100; must be 1024, 2048, 4096 or 8192"),
        ),
        (
            {"rules": [{"match": {"node": "a"}}]},
            "rules[0]: does nothing; give it skip, quantize, inputs, activations, weights, balance or prune",
        ),
        ({"rules": [{"match": {"node": "a"}, "skip": True, "weights": {}}]}, "rules[0]: skip: true excludes weights"),
        ({"rules": [{"skip": True}]}, "rules[0].match: is missing"),
        (
            {"rules": [{"match": {}, "skip": True}]},
            "rules[0].match: needs exactly one of node, name, op_type; found none",
        ),
        ({"balance": {"strength": 0.9}}, "balance.strength: found 0.9; must be less than or equal to 0.8"),
        ({"equalize": {"tolerance": float("nan")}}, "equalize.tolerance: found nan; must be a finite number"),
        (
            {"calibration": {"preprocess": {"size": 8, "resize_short_side": 8}}},
            (
                "calibration.preprocess: size and "
                "resize_short_side exclude each other; to do both, crop after resize_short_side"
            ),
        ),
        (
            {"calibration": {"preprocess": {"mean": [0.1, 0.2]}}},
            ("calibration.preprocess: mean has 2 numbers; must be 1 or 3 for color RGB"),
        ),
        (
            {"calibration": {"preprocess": {"mean": 127.5}}},
            (
                "calibration.preprocess: mean found [127.5], but scale "
                "0.00392157 gives pixels from 0 to 1; with a mean for pixels from 0 to 255 set scale: 1"
            ),
        ),
    ],
)
def test_each_problem(content: dict[str, Any], problem: str) -> None:
    assert problems(content) == [problem]


def test_parts_raise_the_same_error() -> None:
    with pytest.raises(RecipeError, match=r"^bits: found 0; must be greater than or equal to 1$"):
        WeightConfig(bits=0)
    with pytest.raises(RecipeError, match=r"^match\.node: found ''"):
        Rule(match={"node": ""}, skip=True)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"^target: found 'x'"):
        Recipe(target="x")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"^2 problems in the recipe\n  target: .*\n  skip: "):
        Recipe().replace(target="x", skip=5)
    assert Recipe().replace(target="qnn") == Recipe(target="qnn")


def test_the_error_can_be_copied() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"a": 1, "b": 2}, source="r.yaml")
    again = copy.copy(caught.value)  # as between processes
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().target = "qnn"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "r.yaml",
            "target: ort\nweights:\n  bits: 8\n  bits: 4\ntarget: qnn",
            (
                "2 problems in the recipe\n"
                "  target: line 5: key already given in line 1\n  weights.bits: line 4: key already given in line 3"
            ),
        ),
        (
            "r.json",
            '{\n"skip": [],\n"rules": [{\t"skip": true,\n\t"skip": false}]\n}',
            ("rules[0].skip: line 4: key already given in line 3"),
        ),
        ("r.yaml", "1: 2", "line 1: a key must be a string; put it in quotes"),
        ("r.yaml", "", "holds nothing; a recipe is a mapping, such as 'target: ort'"),
        ("r.yaml", "- 1", "holds a list; a recipe is a mapping, such as 'target: ort'"),
        ("r.yaml", "a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("r.json", "target: ort", "line 1, column 1: Expecting value"),
        (
            "r.yaml",
            "a: !!python/object/apply:os.getcwd []",
            (
                "line 1, column 4: could not determine a constructor for the "
                "tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'"
            ),
        ),
        (
            "r.yaml",
            "target: tensort",
            "target: found 'tensort'; must be 'ort', 'tensorrt', 'qnn', 'ascend' or 'kirin'; did you mean 'tensorrt'?",
        ),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_file(path)
    assert str(caught.value) == f"{path}: {message}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read: No such file"):
        Recipe.from_file(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes(b"target: \xff")
    with pytest.raises(RecipeError, match=r"is not UTF-8 text \(invalid start byte at byte 8\)"):
        Recipe.from_file(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="key 1 is not a string"):
        Recipe.from_dict({1: 2})  # type: ignore[dict-item]
