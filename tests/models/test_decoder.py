"""The decoder gives the same token by token as at once, and what it draws is what it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.bundled import MODELS, samples

LAYERS, HEADS, WIDTH, DRAWN = 2, 2, 12, 16
Arrays = dict[str, NDArray[Any]]


class Model:
    def __init__(self, name: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(MODELS / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])

    def __call__(self, **feeds: NDArray[Any]) -> Arrays:
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, map(np.asarray, self.session.run(names, feeds)), strict=True))

    def step(self, tokens: NDArray[np.int64], past: Arrays) -> tuple[NDArray[np.float32], Arrays]:
        start = next(iter(past.values())).shape[2]
        ids = np.tile(np.arange(start, start + tokens.shape[1]), (len(tokens), 1))
        found = self(input_ids=tokens, position_ids=ids, **past)
        return found.pop("logits"), {name.replace("present", "past_key_values"): kept for name, kept in found.items()}


@pytest.fixture(scope="module")
def whole() -> Model:
    return Model("sketch_decoder")


@pytest.fixture(scope="module")
def stepwise() -> Model:
    return Model("sketch_decoder_with_past")


def empty(count: int) -> Arrays:
    names = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    return dict.fromkeys(names, np.zeros((count, HEADS, 0, WIDTH), np.float32))


@pytest.mark.parametrize("chunks", [[1] * 32, [32], [8, 24], [5, 1, 20, 6]], ids=lambda c: f"{len(c)}-chunks")
def test_steps_are_the_whole(whole: Model, stepwise: Model, chunks: list[int]) -> None:
    tokens = samples(MODELS / "sketch_decoder", "test", 4)["input_ids"]
    wanted = whole(input_ids=tokens)
    past, logits = empty(len(tokens)), []
    for part in np.split(tokens, np.cumsum(chunks)[:-1], axis=1):
        found, past = stepwise.step(part, past)
        logits.append(found)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), wanted.pop("logits"), rtol=1e-4, atol=1e-4)
    for name, kept in wanted.items():
        np.testing.assert_allclose(past[name.replace("present", "past_key_values")], kept, rtol=1e-4, atol=1e-4)


def test_tokens_do_not_see_later_ones(whole: Model) -> None:
    tokens = samples(MODELS / "sketch_decoder", "test", 2)["input_ids"]
    before = whole(input_ids=tokens)["logits"]
    other = tokens.copy()
    other[:, 20:] = (other[:, 20:] + 5) % DRAWN
    after = whole(input_ids=other)["logits"]
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.abs(before[:, 20:] - after[:, 20:]).max() > 0.1


def test_the_past_of_the_data_is_that_of_the_whole_sequences(whole: Model) -> None:
    path = MODELS / "sketch_decoder_with_past"
    for part in ("calib", "test"):
        arrays = samples(path, part, 16)
        tokens = samples(MODELS / "sketch_decoder", part, 16)["input_ids"]
        np.testing.assert_array_equal(arrays["input_ids"], tokens[:, 8:])
        wanted = whole(input_ids=tokens[:, :8])
        for name in empty(1):
            np.testing.assert_allclose(arrays[name], wanted[name.replace("past_key_values", "present")], rtol=0.01)


def test_drawn_digits_are_recognized(stepwise: Model) -> None:
    """The likeliest token each time, for each of the ten classes; the classifier of pictures reads the result."""
    tokens, past, drawn = DRAWN + np.arange(10)[:, np.newaxis], empty(10), []
    for _ in range(32):
        logits, past = stepwise.step(tokens, past)
        tokens = logits[:, -1:, :DRAWN].argmax(axis=-1)
        drawn.append(tokens)
    pairs = np.concatenate(drawn, axis=1)
    image = np.stack([pairs // 4, pairs % 4], axis=-1).reshape(10, 1, 8, 8).astype(np.float32) / 3
    logits = Model("digits_cnn")(image=image)["logits"]
    assert (logits.argmax(axis=1) == np.arange(10)).sum() >= 8


def test_both_have_the_same_weights() -> None:
    def weights(name: str) -> dict[str, bytes]:
        return {t.name: t.raw_data for t in onnx.load(MODELS / f"{name}.onnx").graph.initializer if t.data_type == 1}

    assert weights("sketch_decoder") == weights("sketch_decoder_with_past")
