"""What a manifest says, what is refused and how, and which entries it makes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from onnxq.errors import ManifestError
from onnxq.recipe import Recipe, TargetName
from onnxq.zoo.baseline import read_baseline
from onnxq.zoo.manifest import read_manifest
from onnxq.zoo.matrix import entries_of
from onnxq.zoo.recipes import recipe_for
from onnxq.zoo.tolerances import INFORMATIONAL, Tolerance, measure_of
from tests.zoo_runs.conftest import ZOO, write

ONE = "recipes: {a: }\nmodels: {m: {model: net.onnx, evaluation: d.npz, "
MODEL = "models: {m: {model: net.onnx, evaluation: d.npz}}\n"


def refused(folder, text):
    with pytest.raises(ManifestError) as caught:
        entries_of(read_manifest(write(folder, text)))
    message = str(caught.value)
    assert message.startswith(str(folder / "zoo.yaml"))
    return message


REFUSED = {
    "unknown key": ("recipes: {a: }\n" + MODEL + "defalts: {}\n", "defalts: unknown key", "did you mean 'defaults'?"),
    "unknown key of a model": (
        "recipes: {a: }\nmodels: {m: {modle: net.onnx, model: net.onnx, evaluation: d.npz}}\n",
        "models.m.modle: unknown key", "did you mean 'model'?",
    ),
    "recipe's own problem": (
        "recipes: {a: {recipe: {weights: {bits: 99}}}}\n" + MODEL, "recipes.a.recipe.weights.bits: found 99",
    ),
    "recipe and file": ("recipes: {a: {recipe: {}, file: r.yaml}}\n" + MODEL, "recipes.a.file: a recipe is writ"),
    "name twice": ("recipes: {a: }\nmodels:\n  m: {}\n  m: {}\n", "line 4: key already"),
    "target twice": ("recipes: {a: {targets: [ort, ort]}}\n" + MODEL, "recipes.a.targets: ort is given twice"),
    "no such target": ("recipes: {a: {targets: [tensort]}}\n" + MODEL, "targets[0]", "did you mean 'tensorrt'?"),
    "name that is no file name": ("recipes: {a/b: }\n" + MODEL, "recipes.a/b: a name has letters"),
    "negative tolerance": (
        "defaults: {tolerances: {sqnr: -1}}\nrecipes: {a: }\n" + MODEL,
        "defaults.tolerances.sqnr.absolute: found -1; must be greater than or equal to 0",
    ),
    "tolerance that is no number": (
        "defaults: {tolerances: {sqnr: much}}\nrecipes: {a: }\n" + MODEL, "defaults.tolerances.sqnr: found 'much'",
    ),
    "tolerance of what is not measured": (
        "defaults: {tolerances: {tpo1: 1}}\nrecipes: {a: }\n" + MODEL,
        "defaults.tolerances.tpo1: no such metric is measured; did you mean 'top1'?",
    ),
    "no such metric": ("defaults: {metrics: [tpo1]}\nrecipes: {a: }\n" + MODEL, "defaults.metrics[0]: found 'tpo1'"),
    "top1 without labels": (
        ONE + "metrics: top1}}\n", "models.m.labels: is missing",
    ),
    "no models": ("recipes: {a: }\nmodels: {}\n", "models: is empty"),
    "no mapping": ("- a\n", "holds a list; a manifest is a mapping"),
    "missing model": (
        ONE.replace("net", "nat") + "}}\n", "models.m.model:", "nat.onnx does not exist",
    ),
    "missing data": (
        ONE.replace("d.npz", "e.npz") + "}}\n", "models.m.evaluation:", "e.npz does not exist",
    ),
    "missing recipe": ("recipes: {a: quant.cfg}\n" + MODEL, "recipes.a.file:", "quant.cfg does not exist"),
    "variable that is not set": (
        "recipes: {a: }\nmodels: {m: {model: $NO_SUCH_ZOO/net.onnx, evaluation: d.npz}}\n",
        "models.m.model: the variable NO_SUCH_ZOO of the environment is not set",
    ),
    "glob that matches nothing": (
        "recipes: {a: {models: [n]}}\n" + MODEL, "recipes.a.models[0]: 'n' matches nothing",
    ),
    "override that matches nothing": (
        "recipes: {a: }\n" + MODEL + "overrides: [{match: m/b, samples: 3}]\n",
        "overrides[0].match[0]: 'm/b' matches nothing", "did you mean 'm/a'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, zoo):
    text, *expected = REFUSED[case]
    message = refused(zoo, text)
    for part in expected:
        assert part in message


def test_all_problems_are_told_at_once(zoo):
    text = "recipes: {a: {fiel: x}, b: {targets: [x]}}\nmodels: {m: {model: net.onnx}}\n"
    message = refused(zoo, text)
    assert "3 problems in the manifest" in message
    for part in ("recipes.a.fiel", "recipes.b.targets[0]", "models.m.evaluation: is missing"):
        assert part in message


def test_models_times_recipes_times_targets(zoo):
    text = """
recipes:
  static: {targets: [ort, qnn], exclude: [wide]}
  one: {}
models:
  net: {model: net.onnx, evaluation: d.npz, exclude: ["static@qnn"]}
  wide: {model: wide.onnx, evaluation: d.npz}
"""
    entries = entries_of(read_manifest(write(zoo, text)))
    assert [e.name for e in entries] == ["net/static@ort", "net/one", "wide/one"]
    assert [e.target for e in entries] == ["ort", None, None]


def test_settings_of_single_entries_win(zoo):
    text = """
defaults: {samples: 1, batch: 3, tolerances: {sqnr: 1, size: }}
recipes:
  a: {samples: 2, tolerances: {sqnr: {relative: 0.5}}}
  b: {}
models:
  net: {model: net.onnx, evaluation: d.npz, eval_samples: 7}
overrides:
  - {match: "*/a", samples: 9}
  - {match: ["net/b"], tolerances: {sqnr: informational}}
"""
    a, b = (entry.settings for entry in entries_of(read_manifest(write(zoo, text))))
    assert (a.samples, b.samples) == (9, 1)
    assert (a.batch, a.eval_samples, a.metrics) == (3, 7, ("sqnr",))
    assert a.tolerance("sqnr") == Tolerance(relative=0.5)
    assert b.tolerance("sqnr") == a.tolerance("size") == INFORMATIONAL
    assert b.tolerance("kl") == measure_of("kl").tolerance


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (["net"], ["net/static", "net/weight4"]),
        (["weight4"], ["net/weight4", "wide/weight4"]),
        (["*/st*", "net/weight4"], ["net/static", "net/weight4", "wide/static"]),
    ],
    ids=["model", "recipe", "globs"],
)
def test_only_some(only, names, zoo):
    assert [e.name for e in entries_of(read_manifest(zoo / "zoo.yaml"), only)] == names


def test_only_what_is_there(zoo):
    with pytest.raises(ManifestError, match=r"--only 'nett' matches no model/recipe; did you mean 'net'"):
        entries_of(read_manifest(zoo / "zoo.yaml"), ["nett"])


def test_optional_models_are_skipped_with_the_reason(zoo, monkeypatch):
    text = "defaults: {optional: true}\nrecipes: {a: }\n" + ZOO[ZOO.index("models:") :].replace(
        "net.onnx", "$OTHER/n.onnx"
    )
    manifest = read_manifest(write(zoo, text))
    first, second = entries_of(manifest)
    assert first.skipped == "the variable OTHER of the environment is not set"
    assert second.skipped == ""
    monkeypatch.setenv("OTHER", str(zoo))
    assert entries_of(manifest)[0].skipped == f"{zoo / 'n.onnx'} does not exist"
    (zoo / "net.onnx").rename(zoo / "n.onnx")
    assert entries_of(manifest)[0].file == zoo / "n.onnx"


def test_recipes_of_every_kind_of_file(zoo):
    (zoo / "r.yaml").write_text("target: tensorrt\nskip: [head]\n", encoding="utf-8")
    (zoo / "quant.cfg").write_text("batch_num : 1\nactivation_offset : false\n", encoding="utf-8")
    (zoo / "w.ini").write_text("[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num=5\n", encoding="utf-8")
    (zoo / "p.py").write_text(
        "from onnxq.dialects.paddle import QuantConfig\n"
        "from onnxq.dialects.paddle.observers import AbsMaxChannelWiseWeightObserver, AbsmaxObserver\n"
        "q = QuantConfig(AbsmaxObserver(), AbsMaxChannelWiseWeightObserver())\n",
        encoding="utf-8",
    )
    text = (
        "recipes: {yaml: r.yaml, amct: quant.cfg, mslite: w.ini, paddle: 'p.py:q',\n"
        "  again: {file: p.py, targets: [qnn]}}\n"
        "models: {m: {model: net.onnx, evaluation: d.npz, samples: 5}}\n"
    )
    found = {entry.recipe: recipe_for(entry) for entry in entries_of(read_manifest(write(zoo, text)))}
    assert {name: recipe.target for name, recipe in found.items()} == {
        "yaml": "tensorrt", "amct": "ascend", "mslite": "ort", "paddle": "ort", "again@qnn": "qnn",
    }  # fmt: skip
    assert found["mslite"].scheme.kind == "weight_only"
    assert found["mslite"].weights.bits == 5
    assert found["amct"].activations.symmetric is True
    assert found["yaml"] == Recipe.from_file(zoo / "r.yaml").replace(
        calibration=Recipe().calibration.replace(samples=5)
    )


def test_images_are_read_as_the_model_says_unless_the_recipe_does(zoo):
    text = """
recipes:
  plain: {}
  own: {recipe: {calibration: {preprocess: {color: BGR}}}}
models:
  m: {model: net.onnx, evaluation: d.npz, preprocess: {color: GRAY}}
"""
    plain, own = (recipe_for(e).calibration.preprocess for e in entries_of(read_manifest(write(zoo, text))))
    assert (plain.color, own.color) == ("GRAY", "BGR")


def test_the_manifest_of_the_documentation_and_those_of_the_project_are_read(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    text = (root / "docs" / "zoo.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    documented = read_manifest(write(tmp_path, text))
    assert documented.recipes["int8-to"].targets == ("tensorrt", "qnn")
    assert documented.models["resnet"].preprocess.crop == (224, 224)
    monkeypatch.delenv("ONNXQ_ZOO", raising=False)
    for name in ("zoo.yaml", "zoo-real.yaml"):
        entries = entries_of(read_manifest(root / "models" / name))
        assert {bool(e.skipped) for e in entries} == {name == "zoo-real.yaml"}


def test_every_bundled_model_is_in_the_zoo():
    models = Path(__file__).parents[2] / "models"
    entries = entries_of(read_manifest(models / "zoo.yaml"))
    assert {entry.file.name for entry in entries} == {path.name for path in models.glob("*.onnx")}
    assert {recipe_for(e).target for e in entries if e.model == "digits_cnn"} == set(get_args(TargetName))
    kept = read_baseline(models / "zoo_baseline.json").entries
    assert kept.keys() == {entry.name for entry in entries}
