"""The same recipe and samples give the same bytes, whatever the batches, the threads and the process were."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq

MODELS = Path(__file__).resolve().parents[1] / "models"
NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")


def images() -> Any:
    return np.load(MODELS / "data" / "digits_calib.npz")["image"]


def saved(name: str, data: Any, folder: Path, **options: Any) -> bytes:
    path = onnxq.quantize(MODELS / f"{name}.onnx", data, **options).save(folder / "out.onnx")
    return path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_threads_do_not_change_a_byte(name: str, tmp_path: Path) -> None:
    x = images()
    found = {}
    for batch in (1, 8, 32):
        feeds = [{"image": x[i : i + batch]} for i in range(0, len(x), batch)]
        for threads in (1, 2):
            found[batch, threads] = saved(name, feeds, tmp_path, threads=threads)
    assert len(set(found.values())) == 1
    assert len(found) == 6
    assert saved(name, MODELS / "data" / "digits_calib.npz", tmp_path) == found[1, 1]


@pytest.mark.parametrize("method", ["minmax", "percentile", "kl", "ifmr", "hfmg", "mse"])
def test_every_method_is_deterministic(method: str, tmp_path: Path) -> None:
    x = images()[:100]
    recipe = {"activations": {"method": method}}
    one = saved("digits_mobilenet", [{"image": row[None]} for row in x], tmp_path, recipe=recipe, threads=1)
    other = saved("digits_mobilenet", {"image": x}, tmp_path, recipe=recipe, threads=3)
    assert one == other


def test_the_batch_size_of_the_recipe_does_not_change_a_byte(tmp_path: Path) -> None:
    x = images()[:64]
    found = {
        saved("digits_mobilenet", {"image": x}, tmp_path, recipe={"calibration": {"batch_size": size}})
        for size in (1, 8, 32)
    }
    assert len(found) == 1


def test_other_samples_do(tmp_path: Path) -> None:
    x = images()
    assert saved("digits_cnn", {"image": x[:100]}, tmp_path) != saved("digits_cnn", {"image": x[100:200]}, tmp_path)


def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import hashlib, sys, onnxq; p = onnxq.quantize(sys.argv[1], sys.argv[2], threads=1).save(sys.argv[3]);"
        "print(hashlib.sha256(p.read_bytes()).hexdigest())"
    )
    arguments = [str(MODELS / "digits_mobilenet.onnx"), str(MODELS / "data" / "digits_calib.npz")]
    found = set()
    for seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, str(tmp_path / "out.onnx")],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.add(done.stdout.strip())
    here = saved("digits_mobilenet", MODELS / "data" / "digits_calib.npz", tmp_path)
    assert found == {hashlib.sha256(here).hexdigest()}


def test_the_model_may_be_given_in_any_form(tmp_path: Path) -> None:
    """All but the digest of the file, which the metadata hold."""
    import onnx

    path, x = MODELS / "digits_cnn.onnx", {"image": images()[:50]}
    forms = [path, str(path), onnx.load(path), onnxq.load_model(path)]
    found = []
    for form in forms:
        model = onnxq.quantize(form, x).model
        kept = [p for p in model.metadata_props if p.key != "onnxq.model_sha256"]
        del model.metadata_props[:]
        found.append((model.SerializeToString(deterministic=True), [(p.key, p.value) for p in kept]))
    assert all(other == found[0] for other in found[1:])
