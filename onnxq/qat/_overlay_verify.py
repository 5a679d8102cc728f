"""Trains one step of a tiny model, to see that a training runtime works."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import TrainingError
from onnxq.qat._overlay_store import Overlay
from onnxq.qat._overlay_wheels import VERSION
from onnxq.qat.worker_client import ArtifactRequest, Worker

_RATE = 0.5


def verify(overlay: Overlay) -> float:
    """Train one step and compare it with what it has to be; returns the seconds it took.

    Raises:
        TrainingError: If it does not work.
    """
    start = time.perf_counter()
    weight = np.array([[1.0, -2.0]], np.float32)
    x, y = np.array([[3.0], [1.0]], np.float32), np.zeros((2, 2), np.float32)
    with Worker(overlay) as worker, tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        if worker.version != VERSION:
            raise TrainingError(f"the overlay {overlay.path} holds onnxruntime {worker.version} and not {VERSION}")
        worker.generate(_model(weight), ArtifactRequest(("w",), optimizer="sgd"), folder)
        worker.open(folder)
        loss = worker.train_step({"x": x, "y": y}, _RATE).loss
        trained = worker.parameters()["w"]
    error = x @ weight - y
    expected = weight - _RATE * 2 * x.T @ error / error.size
    if not (np.isclose(loss, np.mean(error**2)) and np.allclose(trained, expected)):
        raise TrainingError(
            f"the training runtime in {overlay.path} trained {trained.tolist()} with loss {loss} instead of "
            f"{expected.tolist()} with loss {np.mean(error**2)}; run 'onnxq qat setup --force'"
        )
    return time.perf_counter() - start


def _model(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Sub", ["z", "y"], ["error"]),
        helper.make_node("Mul", ["error", "error"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["loss"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2]),
    ]
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "one_step", inputs, [loss], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
