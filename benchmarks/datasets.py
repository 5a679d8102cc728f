"""Models with data to calibrate and other data to evaluate: the bundled ones, and those of the shared zoo."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tools
from numpy.typing import NDArray

from onnxq.calib.images import preprocess, preprocess_file
from onnxq.recipe import ImagePreprocess

Feed = dict[str, NDArray[Any]]
Labels = NDArray[np.int64] | None
Shape = tuple[int, ...]

IMAGENET = ImagePreprocess(
    resize_short_side=256, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
MINUS_ONE_TO_ONE = ImagePreprocess(resize_short_side=256, crop=(224, 224), scale=1 / 127.5, mean=(1.0,))
TEXT = IMAGENET.replace(crop=None, resize_short_side=None)
FACES = ImagePreprocess(size=(640, 640), scale=1.0, color="BGR")
SMALL = ImagePreprocess(size=(32, 32), scale=1.0, layout="NHWC", interpolation="area")
DIGITS = ("digits_cnn", "digits_mobilenet", "digits_transformer")
BATCH = 10
"""Samples of one feed in evaluation, where the model allows it."""


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes:
        name: What tables call it.
        model: Its file.
        feed: What the calibration data are.
        calib: Makes them: feeds of one sample each.
        evaluation: Makes other data, in feeds of any size, and labels where they are known.
    """

    name: str
    model: Path
    feed: str
    calib: Callable[[], list[Feed]]
    evaluation: Callable[[], tuple[list[Feed], Labels]]


def cases(options: tools.Options, *, classifiers_only: bool = False) -> list[Case]:
    """The models that are wanted.

    Args:
        options: Which zoo, which names.
        classifiers_only: The bundled models and the zoo's three large image classifiers only.
    """
    found = [_digits(name) for name in DIGITS]
    if options.zoo is not None:
        found += _classifiers(options.zoo, quick=options.quick)
        if not classifiers_only:
            found += _others(options.zoo, quick=options.quick)
    return [case for case in found if options.wants(case.name)]


def cut(name: str, array: NDArray[Any], batch: int = 1) -> list[Feed]:
    """Feeds of `batch` samples of one input."""
    return [{name: array[start : start + batch]} for start in range(0, len(array), batch)]


def joined(feeds: list[Feed], batch: int) -> list[Feed]:
    """Join feeds of one sample each, of a model all of whose inputs have the samples along axis 0."""
    groups = [feeds[start : start + batch] for start in range(0, len(feeds), batch)]
    return [{name: np.concatenate([feed[name] for feed in group]) for name in group[0]} for group in groups]


def images(zoo: Path, split: str, config: ImagePreprocess, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first `count` images of a split and their labels.

    Returns:
        float32, shape (N, C, H, W) or (N, H, W, C), and int64, shape (N,).
    """
    with (zoo / "labels.csv").open(encoding="utf-8", newline="") as file:
        listed = [(row["file"], int(row["label"])) for row in csv.DictReader(file)]
    rows = [(file, label) for file, label in listed if file.startswith(f"{split}/")][:count]
    pixels = np.concatenate([preprocess_file(zoo / "images" / file, config) for file, _ in rows])
    return pixels, np.array([label for _, label in rows], np.int64)


def _digits(name: str) -> Case:
    folder = tools.ROOT / "models"

    def load(split: str) -> NDArray[np.float32]:
        with np.load(folder / "data" / f"digits_{split}.npz", allow_pickle=False) as file:
            return file["image"]

    def evaluation() -> tuple[list[Feed], Labels]:
        labels = np.load(folder / "data" / "digits_test_labels.npy", allow_pickle=False)
        return cut("image", load("test"), 50), labels

    return Case(name, folder / f"{name}.onnx", "300 digits", lambda: cut("image", load("calib")), evaluation)


def _classifiers(zoo: Path, *, quick: bool) -> list[Case]:
    configs = {
        "mobilenetv2-7_refit_head": IMAGENET,
        "mobilenetv1_0.25_224": MINUS_ONE_TO_ONE,
        "squeezenet1.1": IMAGENET,
    }
    return [_of_images(zoo, name, "input", c, (20, 20) if quick else (100, 400)) for name, c in configs.items()]


def _of_images(
    zoo: Path, name: str, key: str, config: ImagePreprocess, counts: tuple[int, int], *,
    labelled: bool = True, batch: int = BATCH,
) -> Case:  # fmt: skip
    def evaluation() -> tuple[list[Feed], Labels]:
        pixels, labels = images(zoo, "eval", config, counts[1])
        return cut(key, pixels, batch), labels if labelled else None

    model = zoo / "models" / f"{name}.onnx"
    calib = partial(_calibration_images, zoo, key, config, counts[0])
    return Case(name, model, f"{counts[0]} images", calib, evaluation)


def _calibration_images(zoo: Path, key: str, config: ImagePreprocess, count: int) -> list[Feed]:
    return cut(key, images(zoo, "calib", config, count)[0])


def _others(zoo: Path, *, quick: bool) -> list[Case]:
    few, many = (4, 8) if quick else (16, 64)
    resnet = (8, 20) if quick else (100, 400)
    page, face, tiny = (1, 3, 320, 320), (1, 3, 640, 640), (1, 32, 32, 3)
    speech = {"input_2": _magnitudes((1, 1, 257)), "input_3": _normal((1, 2, 128, 2), 0.1)}
    voice = {"input": _normal((1, 576), 0.1), "state": _normal((2, 1, 128), 0.1), "sr": _always(16000)}
    return [
        _of_images(zoo, "mlperf_tiny_resnet8_cifar10", "input", SMALL, resnet, labelled=False),
        _of_noise(zoo, "mlperf_tiny_resnet8_cifar10", "uniform 0..255", {"input": _pixels(tiny)}, many),
        _of_noise(zoo, "ch_PP-OCRv3_det_infer", "drawn text", {"x": _drawn_text(page)}, few),
        _of_noise(zoo, "ch_PP-OCRv3_det_infer", "normal", {"x": _normal(page, 1.0)}, few),
        _of_images(zoo, "yunet_n_640_640", "input", FACES, (few, few), labelled=False, batch=1),
        _of_noise(zoo, "yunet_n_640_640", "uniform 0..255", {"input": _pixels(face)}, few),
        _of_noise(zoo, "dtln_model_1", "magnitudes of normal", speech, many),
        _of_noise(zoo, "silero_vad_16k_op15", "normal, 0.1", voice, many),
        _stories(zoo, quick=quick),
    ]  # fmt: skip


Maker = Callable[[np.random.Generator], NDArray[Any]]


def _normal(shape: Shape, scale: float) -> Maker:
    return lambda rng: rng.normal(0.0, scale, shape).astype(np.float32)


def _magnitudes(shape: Shape) -> Maker:
    return lambda rng: np.abs(rng.normal(0.0, 1.0, shape)).astype(np.float32)


def _pixels(shape: Shape) -> Maker:
    return lambda rng: rng.uniform(0.0, 255.0, shape).astype(np.float32)


def _drawn_text(shape: Shape) -> Maker:
    """Pages with lines of letters: photographs and noise have no text, and what a detector says of them is zero."""

    def make(rng: np.random.Generator) -> NDArray[Any]:
        page = np.full((*shape[2:], 3), rng.integers(180, 255, 3), np.uint8)
        for row in range(30, shape[2], 40):
            text = "".join(chr(c) for c in rng.integers(65, 91, 12))
            place = (int(rng.integers(5, 60)), row)
            ink = [int(c) for c in rng.integers(0, 90, 3)]
            cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 1.0), ink, 2, cv2.LINE_AA)
        return preprocess(page, TEXT)

    return make


def _always(value: int) -> Maker:
    return lambda _: np.array(value, np.int64)


def _of_noise(zoo: Path, name: str, kind: str, makers: dict[str, Maker], count: int) -> Case:
    def make(seed: int) -> list[Feed]:
        rng = np.random.default_rng(seed)
        return [{key: maker(rng) for key, maker in makers.items()} for _ in range(count)]

    model = zoo / "models" / f"{name}.onnx"
    feed = f"{count} of {kind}" if "text" in kind else f"{count} of noise ({kind})"
    return Case(name, model, feed, lambda: make(1), lambda: (make(2), None))


def _stories(zoo: Path, *, quick: bool) -> Case:
    length = 32 if quick else 128
    tokens = np.load(zoo / "stories260K_sample_tokens.npy", allow_pickle=False).astype(np.int64)[:, :length]
    half = len(tokens) // 2
    feed = f"{half} sampled texts of {length} tokens"
    model = zoo / "models" / "stories260K_llama.onnx"
    return Case(
        "stories260K_llama", model, feed,
        lambda: cut("tokens", tokens[:half]), lambda: (cut("tokens", tokens[half:], 8), None),
    )  # fmt: skip
