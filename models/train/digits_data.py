# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits of scikit-learn, split once for training, calibration and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FloatArray = NDArray[np.float32]
LabelArray = NDArray[np.int64]

IMAGE_SHAPE = (1, 8, 8)
CLASSES = 10
CALIBRATION_SAMPLES = 300
TEST_FRACTION = 0.25
SPLIT_SEED = 0

_PIXEL_MAX = 16.0


@dataclass(frozen=True)
class DigitsSplit:
    """Images in [0, 1] as [N, 1, 8, 8] and their labels."""

    train_images: FloatArray
    train_labels: LabelArray
    test_images: FloatArray
    test_labels: LabelArray

    @property
    def calibration_images(self) -> FloatArray:
        """The first training samples; the split has already shuffled them."""
        return self.train_images[:CALIBRATION_SAMPLES]


def load_split() -> DigitsSplit:
    """Load the data set and split it, stratified by class."""
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels / _PIXEL_MAX).astype(np.float32).reshape(-1, *IMAGE_SHAPE)
    labels = digits.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_FRACTION, random_state=SPLIT_SEED, stratify=labels
    )
    return DigitsSplit(train_images, train_labels, test_images, test_labels)


def write_data(split: DigitsSplit, directory: Path) -> None:
    """Write the training, calibration and test arrays, named after the input of the models."""
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / "digits_train.npz", image=split.train_images, labels=split.train_labels)
    np.savez_compressed(directory / "digits_calib.npz", image=split.calibration_images)
    np.savez_compressed(directory / "digits_test.npz", image=split.test_images)
    np.save(directory / "digits_test_labels.npy", split.test_labels)
