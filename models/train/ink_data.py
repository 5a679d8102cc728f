# SPDX-License-Identifier: Apache-2.0
"""Digits at twice their size behind stripes, shades and noise, and where their ink is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from augment import distort
from digits_data import DigitsSplit, FloatArray
from numpy.typing import NDArray

SIZE = 16

_INK = 0.4
_NOISE = 0.12
_GREYS = 255
_CALIBRATION, _TEST, _COPIES = 64, 300, 6


@dataclass(frozen=True)
class InkPictures:
    """Pictures in [0, 1], [N, 1, SIZE, SIZE], in steps of 1/255, and 1 where there is ink, of the same shape."""

    picture: FloatArray
    ink: NDArray[np.uint8]

    def part(self, start: int, end: int) -> InkPictures:
        """Some of them."""
        return InkPictures(self.picture[start:end], self.ink[start:end])


def ink_pictures(images: FloatArray, rng: np.random.Generator) -> InkPictures:
    """Enlarge pictures of [N, 1, 8, 8] and disturb them.

    Args:
        images: The pictures.
        rng: Source of the disturbances.
    """
    clean = _enlarged(images)
    count = len(clean)

    def each(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, (count, 1, 1, 1))

    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = each(0, np.pi)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    stripes = each(0, 0.35) * (np.sin(2 * np.pi * (each(1.5, 4) * along + each(0, 1))) > each(0, 0.8))
    shade = each(-0.3, 0.3) * (rows - 0.5) + each(-0.3, 0.3) * (columns - 0.5)
    noisy = each(0.45, 0.8) * clean + stripes + shade + rng.normal(0, _NOISE, clean.shape) + 0.1
    picture = (np.rint(np.clip(noisy, 0, 1) * _GREYS) / _GREYS).astype(np.float32)
    return InkPictures(picture, (clean > _INK).astype(np.uint8))


def training_pictures(split: DigitsSplit) -> InkPictures:
    """Disturbed copies of the training pictures."""
    rng = np.random.default_rng(1)
    images = [split.train_images, *(distort(split.train_images, rng) for _ in range(_COPIES))]
    return ink_pictures(np.concatenate(images), rng)


def held_out_pictures(split: DigitsSplit) -> InkPictures:
    """Disturbed test pictures."""
    return ink_pictures(split.test_images[:_TEST], np.random.default_rng(2))


def calibration_pictures(split: DigitsSplit) -> InkPictures:
    """Disturbed training pictures, as the model has seen them."""
    return training_pictures(split).part(0, _CALIBRATION)


def _enlarged(images: FloatArray) -> NDArray[np.float64]:
    """Twice the size, between pixels in straight lines."""
    size = images.shape[-1]
    places = np.clip((np.arange(SIZE) + 0.5) * size / SIZE - 0.5, 0, size - 1)
    low = np.minimum(places.astype(np.int64), size - 2)
    matrix = np.zeros((SIZE, size))
    matrix[np.arange(SIZE), low] = 1 - (places - low)
    matrix[np.arange(SIZE), low + 1] = places - low
    return np.asarray(matrix @ images.astype(np.float64) @ matrix.T)
