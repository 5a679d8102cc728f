# SPDX-License-Identifier: Apache-2.0
"""Short sounds of eight kinds, made by a formula: how their pitch or loudness runs is what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from digits_data import FloatArray
from numpy.typing import NDArray

LENGTH = 256
KINDS = ("steady", "rising", "falling", "up and down", "down and up", "jump up", "jump down", "trembling")

_TRAIN, _CALIBRATION, _TEST = 6000, 96, 400
_STEPS = 64
"""Values are multiples of 1/64, as of a coarse converter; they compress better."""


@dataclass(frozen=True)
class Sounds:
    """Signals of [N, 1, LENGTH] in about [-1, 1], and the index of their kind."""

    signal: FloatArray
    kind: NDArray[np.int64]


def sounds(count: int, rng: np.random.Generator) -> Sounds:
    """Sounds of any pitch, onset, length and loudness, in noise.

    Args:
        count: How many; kinds are drawn evenly.
        rng: Source of all that varies.
    """
    kind = rng.permutation(np.arange(count) % len(KINDS))
    time = np.arange(LENGTH)[np.newaxis] / LENGTH

    def each(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, (count, 1))

    length = each(0.55, 0.85)
    within = (time - each(0, 1) * (1 - length)) / length
    position = np.clip(within, 0, 1)
    low, span = each(10, 22), each(8, 18)
    late = (position > each(0.4, 0.6)).astype(np.float64)
    bend = 1 - np.abs(2 * position - 1)
    pitch = np.stack([0 * position, position, 1 - position, bend, 1 - bend, late, 1 - late, 0 * position])
    chosen = low + span * np.where(np.isin(kind, (0, 7))[:, np.newaxis], each(0, 1), pitch[kind, np.arange(count)])
    phase = 2 * np.pi * (np.cumsum(chosen, axis=1) / LENGTH + each(0, 1))
    tremble = 0.55 + 0.45 * np.sin(2 * np.pi * (each(4, 7) * position + each(0, 1)))
    loud = np.where((kind == 7)[:, np.newaxis], tremble, 1.0) * (np.abs(within - 0.5) <= 0.5)
    signal = each(0.4, 0.9) * loud * np.sin(phase) + each(0.3, 0.7) * rng.standard_normal((count, LENGTH))
    rounded = np.rint(np.clip(signal, -1, 1) * _STEPS) / _STEPS
    return Sounds(rounded[:, np.newaxis].astype(np.float32), kind.astype(np.int64))


def training_sounds() -> Sounds:
    """The sounds that a model is trained on."""
    return sounds(_TRAIN, np.random.default_rng(10))


def calibration_sounds() -> Sounds:
    """The first of them."""
    found = training_sounds()
    return Sounds(found.signal[:_CALIBRATION], found.kind[:_CALIBRATION])


def held_out_sounds() -> Sounds:
    """Other ones."""
    return sounds(_TEST, np.random.default_rng(11))
