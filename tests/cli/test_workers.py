"""``onnxq quantize --workers`` and ``--scheduler``: the same file, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.test_cli import CONV, run
from tests.graphs import build, normal

dask = pytest.importorskip("distributed", reason="calibration by workers needs dask: pip install -e '.[distributed]'")
# what dask and its parts deprecate is not for the tests of onnxq, and its threads would stumble over it
pytestmark = pytest.mark.filterwarnings("ignore")

OBSERVER = """
from onnxq.dialects.paddle import QuantConfig
from onnxq.dialects.paddle.observers import AbsMaxChannelWiseWeightObserver


class Largest:
    def __init__(self):
        self.largest = 0.0

    def observe(self, x):
        self.largest = max(self.largest, float(abs(x).max()))

    def merge(self, other):
        both = Largest()
        both.largest = max(self.largest, other.largest)
        return both

    def range(self):
        return -self.largest, self.largest


q_config = QuantConfig(activation=Largest, weight=AbsMaxChannelWiseWeightObserver())
"""


@pytest.fixture(scope="module")
def scheduler():
    with dask.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", memory_limit=0,
        protocol="tcp://", host="127.0.0.1",
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build(CONV, W=normal(4, 3, 3, 3), G=normal(4, 4))
    for node, name in zip(model.graph.node, ("conv", "relu", "pool", "flat", "head"), strict=True):
        node.name = name
    onnx.save(model, "m.onnx")
    np.savez("d.npz", x=normal(40, 3, 8, 8))
    Path("mine.py").write_text(OBSERVER, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--config", "mine.py:q_config"]], ids=["default", "own observer"])
def test_the_file_is_the_same_with_a_scheduler(here, scheduler, more):
    run("quantize", "m.onnx", "-o", "a.onnx", "--data", "d.npz", "--threads", 1, *more)
    run("quantize", "m.onnx", "-o", "b.onnx", "--data", "d.npz", "--scheduler", scheduler, *more)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_numbers_and_addresses_exclude_each_other(here):
    result = run(
        "quantize", "m.onnx", "-o", "a.onnx", "--data", "d.npz", "--workers", 2, "--scheduler", "tcp://h:1", code=2
    )
    assert "leave one of them out" in result.stderr
    assert not Path("a.onnx").exists()


def test_what_is_no_address_is_one_line_and_nothing_is_written(here):
    result = run("quantize", "m.onnx", "-o", "a.onnx", "--data", "d.npz", "--scheduler", "nonsense://h", code=2)
    assert result.stderr.startswith("error: no scheduler answers at nonsense://h")
    assert not Path("a.onnx").exists()
