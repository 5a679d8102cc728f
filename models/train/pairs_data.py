# SPDX-License-Identifier: Apache-2.0
"""Two digits and a question about them, answered by yes or no."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from augment import distort
from digits_data import DigitsSplit, FloatArray, LabelArray
from numpy.typing import NDArray

QUESTIONS = ("the same digit", "the left one is larger", "their sum is even", "they differ by one")
GREATER = 1

_TRAIN_TIMES, _COPIES = 2, 8
_CALIBRATION, _TEST = 96, 400


@dataclass(frozen=True)
class Pairs:
    """Pictures of [N, 1, 8, 8], indexes of questions and answers (0 or 1) of [N, 1], and the digits, [N, 2]."""

    left: FloatArray
    right: FloatArray
    question: NDArray[np.int64]
    answer: NDArray[np.int64]
    digits: NDArray[np.int64]

    @property
    def inputs(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """What a model reads."""
        return {"left": self.left, "right": self.right, "question": self.question}


def pairs(images: FloatArray, labels: LabelArray, count: int, rng: np.random.Generator) -> Pairs:
    """Pairs of which about half have the answer yes.

    Args:
        images: Pictures.
        labels: Their digits.
        count: How many pairs.
        rng: Chooses.
    """
    tried = 12 * count
    chosen = rng.integers(0, len(images), (tried, 2))
    question = rng.integers(0, len(QUESTIONS), (tried, 1))
    digits = labels[chosen]
    a, b = digits[:, :1], digits[:, 1:]
    answer = np.where(question == 0, a == b, 0) + np.where(question == GREATER, a > b, 0)
    answer += np.where(question == 2, (a + b) % 2 == 0, 0) + np.where(question == 3, np.abs(a - b) == 1, 0)
    kept = np.concatenate([np.flatnonzero(answer[:, 0] == wanted)[: count // 2] for wanted in (0, 1)])
    kept = rng.permutation(kept)
    left, right = (images[chosen[kept, side]] for side in (0, 1))
    return Pairs(left, right, question[kept], answer[kept].astype(np.int64), digits[kept])


def training_pairs(split: DigitsSplit) -> Pairs:
    """Pairs of training pictures and of distorted copies of them."""
    rng = np.random.default_rng(20)
    images = [split.train_images, *(distort(split.train_images, rng) for _ in range(_COPIES))]
    labels = np.tile(split.train_labels, len(images))
    return pairs(np.concatenate(images), labels, _TRAIN_TIMES * len(labels), rng)


def calibration_pairs(split: DigitsSplit) -> Pairs:
    """Pairs of the training pictures as they are."""
    return pairs(split.train_images, split.train_labels, _CALIBRATION, np.random.default_rng(21))


def held_out_pairs(split: DigitsSplit) -> Pairs:
    """Pairs of test pictures."""
    return pairs(split.test_images, split.test_labels, _TEST, np.random.default_rng(22))
