"""A zoo of one small trained-looking network, in a folder of its own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.zoo.job import Options, prepare_blessing
from tests.graphs import build, normal, session

NET = """g (float[N, 8] x) => (float[N, 5] y) {
    a = Gemm(x, A)
    b = Relu(a)
    y = Gemm(b, B)
}"""
ZOO = """\
baseline: baseline.json
defaults: {metrics: [top1, sqnr], timings: false}
recipes:
  static: {}
  weight4: {recipe: {scheme: weight_only, weights: {bits: 4}}}
models:
  net: {model: net.onnx, calibration: d.npz, evaluation: d.npz, labels: labels.npy}
  wide: {model: wide.onnx, calibration: d.npz, evaluation: d.npz, labels: labels.npy}
"""
METRIC = """
import os, signal

def good(outputs, labels):
    return float((outputs["y"].argmax(1) == labels).mean())

def loud(outputs, labels):
    print("measuring")
    return 1.0

def crash(outputs, labels):
    os.kill(os.getpid(), signal.SIGKILL)

def hang(outputs, labels):
    with open(os.path.join(os.path.dirname(__file__), "hanging"), "a") as file:
        file.write(f"{os.getpid()}\\n")
    signal.pause()
"""


@pytest.fixture
def zoo(tmp_path):
    """A folder with two models, their data, and zoo.yaml."""
    samples = normal(40, 8)
    for seed, name in enumerate(("net", "wide")):
        model = build(NET, A=normal(8, 16, seed=seed), B=normal(16, 5, seed=seed + 9))
        for node, title in zip(model.graph.node, ("first", "relu", "head"), strict=True):
            node.name = title
        onnx.save(model, tmp_path / f"{name}.onnx")
        scores = session(model).run(None, {"x": samples})[0]
        np.save(tmp_path / ("labels.npy" if name == "net" else "wide_labels.npy"), scores.argmax(1))
    np.savez(tmp_path / "d.npz", x=samples)
    (tmp_path / "metric.py").write_text(METRIC, encoding="utf-8")
    write(tmp_path, ZOO.replace("wide.onnx, calibration: d.npz, evaluation: d.npz, labels: labels", WIDE))
    return tmp_path


WIDE = "wide.onnx, calibration: d.npz, evaluation: d.npz, labels: wide_labels"


def write(folder, text):
    """Write the manifest; gives its path."""
    path = folder / "zoo.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def blessed(zoo):
    """The zoo with a baseline of itself."""
    prepare_blessing(zoo / "zoo.yaml", Options(jobs=0)).write()
    return zoo
