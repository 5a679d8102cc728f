"""AMCT's search for pruning ratios: what it writes is read back and prunes as much as was asked for."""

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.dialects import amct
from onnxq.dialects.amct.prune_search import format_prune_config
from onnxq.dialects.amct.retrain_config import parse_retrain_config
from onnxq.dialects.amct.retrain_job import load_retrain_config
from onnxq.errors import RecipeError
from onnxq.recipe import Recipe
from tests.qat.runtime import training_runtime

MODELS = Path(__file__).parents[3] / "models"
CNN = MODELS / "digits_cnn.onnx"


@pytest.mark.parametrize(("optimized", "multiple"), [("false", 1), ("true", 16)])
def test_the_configuration_it_writes_prunes_as_much(tmp_path, optimized, multiple):
    training_runtime()
    with np.load(MODELS / "data" / "digits_train.npz") as content:
        data = {name: content[name][:128] for name in content.files}
    (tmp_path / "search.cfg").write_text(f"compress_ratio: 1.25\nascend_optimized: {optimized}\n")
    found = amct.auto_channel_prune_search(CNN, tmp_path / "search.cfg", data, tmp_path / "prune.cfg")
    assert found.flops <= 1 / 1.25
    job = load_retrain_config(tmp_path / "prune.cfg", CNN, purpose="prune")
    pruned = onnxq.prune(CNN, recipe=job.recipe)
    assert pruned.after.flops / pruned.before.flops == pytest.approx(found.flops, rel=1e-6)
    lost = [layer for layer in pruned.layers if layer.after < layer.before]
    assert lost
    assert all(layer.after % multiple == 0 for layer in lost)


def test_names_are_written_so_that_they_can_be_read(tmp_path):
    rule = {"match": {"node": 'a "b"\\c'}, "prune": {"kind": "channels", "ratio": 0.3}}
    text = format_prune_config(Recipe.from_dict({"rules": [rule]}), ascend_optimized=True)
    found = amct_override(text)
    assert (found.match.name, found.retraining.prune.prune_ratio) == ('a "b"\\c', 0.3)


def amct_override(text):
    (found,) = parse_retrain_config(text).layers
    return found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ascend_optimized: true", "AutoChannelPruneConfig needs compress_ratio"),
        ("compress_ratio: 0.5", "line 1: compress_ratio: found 0.5; must be > 1"),
        ("compress_ratio: 2 max_prune_ratio: 1.5", "max_prune_ratio: found 1.5; must be in (0, 1]"),
        ("compress_ratio: 2 test_iteration: 0", "test_iteration: found 0; must be at least 1"),
        ("compress_rate: 2", "has no field 'compress_rate'; did you mean 'compress_ratio'"),
    ],
)
def test_what_is_not_allowed(tmp_path, text, problem):
    (tmp_path / "search.cfg").write_text(text)
    with pytest.raises(RecipeError) as error:
        amct.auto_channel_prune_search(CNN, tmp_path / "search.cfg", {}, tmp_path / "prune.cfg")
    assert problem in str(error.value)
    assert not (tmp_path / "prune.cfg").exists()


def test_other_searches_are_not_known(tmp_path):
    with pytest.raises(RecipeError, match="there is no search_alg 'Random'; known: GreedySearch"):
        amct.auto_channel_prune_search(CNN, tmp_path / "x", {}, tmp_path / "y", search_alg="Random")
