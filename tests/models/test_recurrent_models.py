"""The recurrent models compute what their cells do, written out step by step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.bundled import FILES, labels_of, name_of, samples
from tests.graphs import run

Array = NDArray[np.float64]


def weights(path: object) -> dict[str, Array]:
    model = onnx.load(path)
    return {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(x: Array, w: Array, r: Array, b: Array) -> tuple[Array, Array]:
    """All states and the last one of [time, N, features], gates in the order i, o, f, c."""
    hidden = r.shape[1]
    h = c = np.zeros((x.shape[1], hidden))
    states = []
    for step in x:
        i, o, f, g = np.split(step @ w.T + h @ r.T + b[: 4 * hidden] + b[4 * hidden :], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states), h


def gru(x: Array, w: Array, r: Array, b: Array) -> Array:
    """All states, gates in the order z, r, h; the reset gate comes after the recurrent product."""
    hidden = r.shape[1]
    h = np.zeros((x.shape[1], hidden))
    states = []
    for step in x:
        given, own = step @ w.T + b[: 3 * hidden], h @ r.T + b[3 * hidden :]
        z, reset = (sigmoid(given[:, p] + own[:, p]) for p in (slice(hidden), slice(hidden, 2 * hidden)))
        candidate = np.tanh(given[:, 2 * hidden :] + reset * own[:, 2 * hidden :])
        h = (1 - z) * candidate + z * h
        states.append(h)
    return np.stack(states)


def digits_lstm(image: Array, p: dict[str, Array]) -> Array:
    rows = image[:, 0].transpose(1, 0, 2)
    w, r, b = (p[f"lstm/{part}"] for part in ("weight", "recurrence", "bias"))
    forward, last = lstm(rows, w[0], r[0], b[0])
    backward, first = lstm(rows[::-1], w[1], r[1], b[1])
    pooled = np.concatenate([forward.max(axis=0) + last, backward.max(axis=0) + first], axis=1)
    return pooled @ p["head/weight"].T + p["head/bias"]


def digits_gru(image: Array, p: dict[str, Array]) -> Array:
    rows = np.tanh(image[:, 0] @ p["rows/embed/weight"] + p["rows/embed/bias"]).transpose(1, 0, 2)
    for layer in ("gru1", "gru2"):
        rows = gru(rows, *(p[f"{layer}/{part}"][0] for part in ("weight", "recurrence", "bias")))
    return rows[-1] @ p["head/weight"].T + p["head/bias"]


UNROLLED = {"digits_lstm": digits_lstm, "digits_gru": digits_gru}


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) in UNROLLED], ids=lambda p: p.stem)
def test_unrolled(path) -> None:
    feed = samples(path, "test", 64)
    wanted = UNROLLED[name_of(path)](feed["image"].astype(np.float64), weights(path))
    np.testing.assert_allclose(run(onnx.load(path), feed)["logits"], wanted, rtol=1e-4, atol=1e-4)
    assert (wanted.argmax(axis=1) == labels_of(path)[:64]).mean() > 0.9
