# SPDX-License-Identifier: Apache-2.0
"""Digits as sequences of tokens: first their class, then their pixels two by two at four levels of grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from augment import distort
from digits_data import CALIBRATION_SAMPLES, CLASSES, DigitsSplit, FloatArray
from numpy.typing import NDArray

TokenArray = NDArray[np.int64]

LEVELS = 4
VOCABULARY = LEVELS**2 + CLASSES
LENGTH = 32

_COPIES = 10


@dataclass(frozen=True)
class Sketches:
    """Sequences [samples, LENGTH] of the tokens read, and of the ones that follow each of them."""

    tokens: TokenArray
    following: TokenArray


def sketches(images: FloatArray, labels: TokenArray) -> Sketches:
    """Turn pictures into sequences.

    Args:
        images: Pictures as [N, 1, 8, 8] in [0, 1].
        labels: Their classes.
    """
    levels = np.minimum(np.rint(images.reshape(len(images), -1) * (LEVELS - 1)), LEVELS - 1).astype(np.int64)
    drawn = levels[:, 0::2] * LEVELS + levels[:, 1::2]
    first = LEVELS**2 + labels[:, np.newaxis]
    return Sketches(np.concatenate([first, drawn[:, :-1]], axis=1), drawn)


def training_sketches(split: DigitsSplit) -> Sketches:
    """The training pictures and distorted copies of them."""
    rng = np.random.default_rng(0)
    copies = [split.train_images, *(distort(split.train_images, rng) for _ in range(_COPIES))]
    return sketches(np.concatenate(copies), np.tile(split.train_labels, len(copies)))


def calibration_sketches(split: DigitsSplit) -> Sketches:
    """The pictures that calibrate the classifiers."""
    return sketches(split.calibration_images, split.train_labels[:CALIBRATION_SAMPLES])
