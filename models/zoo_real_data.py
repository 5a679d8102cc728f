# SPDX-License-Identifier: Apache-2.0
"""Data for zoo-real.yaml where files alone do not say it: noise of the right shape, drawn text, sampled tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]

CALIBRATING, EVALUATING = 1, 2
"""Seeds of the two splits."""
STEPS = 32
PAGES = 8
LENGTH = 64
"""Tokens of a text."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _speech(seed: int) -> Iterator[Feed]:
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        magnitudes = np.abs(rng.normal(0.0, 1.0, (1, 1, 257)))
        state = rng.normal(0.0, 0.1, (1, 2, 128, 2))
        yield {"input_2": magnitudes.astype(np.float32), "input_3": state.astype(np.float32)}


def speech_calibration() -> list[Feed]:
    """Magnitudes of normal noise and states for the step of a speech enhancer."""
    return list(_speech(CALIBRATING))


def speech() -> list[Feed]:
    """Others of the kind."""
    return list(_speech(EVALUATING))


def _voice(seed: int) -> Iterator[Feed]:
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        yield {
            "input": rng.normal(0.0, 0.1, (1, 576)).astype(np.float32),
            "state": rng.normal(0.0, 0.1, (2, 1, 128)).astype(np.float32),
            "sr": np.array(16000, np.int64),
        }


def voice_calibration() -> list[Feed]:
    """Normal noise for a detector of voices."""
    return list(_voice(CALIBRATING))


def voice() -> list[Feed]:
    """Others of the kind."""
    return list(_voice(EVALUATING))


def _pages(seed: int) -> Iterator[Feed]:
    """Pages with lines of letters: photographs and noise have no text, and what a detector says of them is zero."""
    rng = np.random.default_rng(seed)
    for _ in range(PAGES):
        page = np.full((320, 320, 3), rng.integers(180, 255, 3), np.uint8)
        for row in range(30, 320, 40):
            text = "".join(chr(c) for c in rng.integers(65, 91, 12))
            place = (int(rng.integers(5, 60)), row)
            ink = [int(c) for c in rng.integers(0, 90, 3)]
            cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 1.0), ink, 2, cv2.LINE_AA)
        scaled = (page / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        yield {"x": scaled.transpose(2, 0, 1)[np.newaxis].astype(np.float32)}


def pages_calibration() -> list[Feed]:
    """Drawn pages of text."""
    return list(_pages(CALIBRATING))


def pages() -> list[Feed]:
    """Others of the kind."""
    return list(_pages(EVALUATING))


def _tokens() -> NDArray[np.int64]:
    path = Path(os.environ["ONNXQ_ZOO"]) / "stories260K_sample_tokens.npy"
    return np.load(path, allow_pickle=False).astype(np.int64)[:, :LENGTH]


def texts_calibration() -> Feed:
    """The first half of the texts that the language model wrote."""
    tokens = _tokens()
    return {"tokens": tokens[: len(tokens) // 2]}


def texts() -> Feed:
    """The second half."""
    tokens = _tokens()
    return {"tokens": tokens[len(tokens) // 2 :]}
