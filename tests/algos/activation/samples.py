"""Activations of the shapes that occur: balanced, one-sided, heavy tailed, with outliers, degenerate."""

from dataclasses import replace

import numpy as np

from onnxq.spec import QType, QuantSpec
from onnxq.stats import RoundPeaks, RoundQuantiles, TensorStats

ASYMMETRIC = QuantSpec(QType.UINT8, symmetric=False)
SYMMETRIC = QuantSpec(QType.INT8)
NARROW4 = QuantSpec(QType.INT4)
SPECS = {"uint8": ASYMMETRIC, "int8": SYMMETRIC, "int4": NARROW4, "uint4": QuantSpec(QType.UINT4, symmetric=False)}


def _make():
    rng = np.random.default_rng(7)
    g = rng.standard_normal(30_000).astype(np.float32)
    return {
        "gauss": g,
        "relu": np.maximum(g, 0),
        "negative": -np.abs(g),
        "shifted": g + np.float32(9),
        "laplace": rng.laplace(size=30_000).astype(np.float32),
        "outlier": np.concatenate([g, [60.0]]).astype(np.float32),
        "hardswish": (3 * g * np.clip(3 * g + 3, 0, 6) / 6).astype(np.float32),
        "relu6": np.clip(4 * g, 0, 6),
        "tiny": g * np.float32(1e-12),
        "huge": g * np.float32(1e9),
    }


ARRAYS = _make()
DEGENERATE = {
    "zeros": np.zeros(100, np.float32),
    "one": np.array([2.5], np.float32),
    "constant": np.full(50, 1.7, np.float32),
    "negative constant": np.full(50, -1.7, np.float32),
    "two": np.array([-1.0, 3.0], np.float32),
    "sparse": np.array([0.0] * 99 + [5.0], np.float32),
    "denormal": np.full(9, 1e-42, np.float32),
    "largest": np.array([-3.4e38, 3.4e38], np.float32),
}


SHARES = (0.0001, 0.9999)


def stats_of(x):
    flat = np.sort(x.reshape(-1))
    quantiles = RoundQuantiles.empty(SHARES).add(np.array([flat[int(share * flat.size)] for share in SHARES]))
    stats = TensorStats.from_array(x)
    return replace(stats, quantiles=quantiles, peaks=RoundPeaks().add(stats.absmax))


def squared_error(x, low, high, spec):
    """Squared error of quantizing `x`, from the formulas and in float64."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    qmin, qmax = spec.bounds
    x = x.astype(np.float64)
    if spec.symmetric:
        scale, zero = max(-low, high) / (qmax - spec.middle), spec.middle
    else:
        scale = (high - low) / (qmax - qmin)
        zero = min(max(np.rint(qmin - low / scale), qmin), qmax)
    codes = np.clip(np.rint(x / scale) + zero, qmin, qmax)
    return float((((codes - zero) * scale - x) ** 2).sum())
