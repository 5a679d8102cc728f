"""Compiled loops of the range searches; imported when a search runs, so that naming a method stays cheap."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from onnxq.algos._jit import f64, f64_in, i64, i64_in, i64_pair, kernel
from onnxq.stats import BINS, HALF

#: With more levels than this the error inside the range is taken as that of a uniform density, ``scale**2 / 12``: a bin
#: then holds too few levels, or none, to place the mass.
_MANY_LEVELS = 2048
_EPSILON = float(np.finfo(np.float32).eps)
_f64_out = types.Array(f64, 1, "C")


@kernel(f64(f64_in, f64_in, f64_in, i64, i64, f64))
def _around(
    count: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    begin: int,
    end: int,
    value: float,
) -> float:
    """Sum of ``(x - value)**2`` over the bins `begin` to `end`."""
    n = count[end] - count[begin]
    return float(second[end] - second[begin] - 2.0 * value * (first[end] - first[begin]) + value * value * n)


@kernel(i64(f64, i64))
def _bin_after(value: float, least: int) -> int:
    """First bin whose centre is not below `value`, at least `least`."""
    position = np.ceil(value + (HALF - 0.5))
    return min(max(int(min(max(position, 0.0), float(BINS))), least), BINS)


@kernel(f64(f64_in, f64_in, f64_in, f64, i64, i64))
def _error(
    count: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    scale: float,
    lowest: int,
    highest: int,
) -> float:
    if highest - lowest > _MANY_LEVELS:
        begin = _bin_after(lowest * scale, 0)
        end = _bin_after(highest * scale, begin)
        inside = (count[end] - count[begin]) * scale * scale / 12.0
        below = _around(count, first, second, 0, begin, lowest * scale)
        return float(inside + below + _around(count, first, second, end, BINS, highest * scale))
    total = 0.0
    begin = 0
    for level in range(lowest, highest + 1):
        end = BINS if level == highest else _bin_after((level + 0.5) * scale, begin)
        if count[end] > count[begin]:
            total += _around(count, first, second, begin, end, level * scale)
        begin = end
    return total


@kernel(types.void(f64_in, f64_in, f64_in, f64_in, i64_in, i64_in, _f64_out))
def level_errors(
    count: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    scales: NDArray[np.float64],
    lowest: NDArray[np.int64],
    highest: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Squared error of each candidate scale with its lowest and highest level, written to `out`."""
    for k in range(scales.size):
        out[k] = _error(count, first, second, scales[k], lowest[k], highest[k])


@kernel(types.void(f64_in, i64_in, _f64_out))
def divergences(counts: NDArray[np.float64], levels: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Sums of ``P log P``, of counts and of occupied bins run ahead, so a candidate costs one logarithm per level."""
    size = counts.size
    mass = np.zeros(size + 1)
    entropy = np.zeros(size + 1)
    occupied = np.zeros(size + 1)
    for i in range(size):
        c = counts[i]
        mass[i + 1] = mass[i] + c
        entropy[i + 1] = entropy[i] + (c * np.log(c) if c > 0 else 0.0)
        occupied[i + 1] = occupied[i] + (1.0 if c > 0 else 0.0)
    total = mass[size]
    for kept in range(1, size + 1):
        runs = levels[kept]
        if kept < runs or mass[kept] <= 0:
            continue
        beyond = total - mass[kept] if kept < size else 0.0
        last = counts[kept - 1] + beyond
        cross = 0.0
        for run in range(runs):
            begin = run * kept // runs
            end = (run + 1) * kept // runs
            inside = mass[end] - mass[begin]
            places = occupied[end] - occupied[begin]
            weight = inside
            if run == runs - 1:
                weight += beyond
                if counts[kept - 1] <= 0 and beyond > 0:
                    places += 1.0
            if weight > 0:
                cross += weight * np.log(inside / places) if inside > 0 else -np.inf
        own = entropy[kept - 1] + (last * np.log(last) if last > 0 else 0.0)
        # sum of P / total * log((P / total) / (Q / mass[kept])), Q being the spread counts
        out[kept] = (own - cross) / total + np.log(mass[kept] / total)


@kernel(types.void(f64_in, i64_in, _f64_out))
def split_divergences(counts: NDArray[np.float64], levels: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """As `divergences`, with bins split at the borders of levels; counts are > 0, and all bins are no candidate."""
    size = counts.size
    mass = np.zeros(size + 1)
    entropy = np.zeros(size + 1)
    for i in range(size):
        mass[i + 1] = mass[i] + counts[i]
        entropy[i + 1] = entropy[i] + counts[i] * np.log(counts[i])
    total = mass[size]
    for kept in range(1, size):
        runs = levels[kept]
        if kept < runs:
            continue
        beyond = total - mass[kept]
        before = 0.0
        cross = 0.0
        for run in range(runs):
            begin, end = run * kept // runs, (run + 1) * kept // runs
            into, over = (run * kept % runs) / runs, ((run + 1) * kept % runs) / runs
            whole = begin + 1 if into > 0 else begin
            inside = 0.0  # added up anew: in a difference of sums, bins next to nothing would be lost
            for i in range(whole, end):
                inside += counts[i]
            level = (inside + (1.0 - into) * (whole - begin) * counts[begin] + over * counts[end]) * runs / kept
            if into > 0:
                cross += counts[begin] * np.log(before * into + level * (1.0 - into))
            cross += inside * np.log(level)
            before = level
        cross += beyond * np.log(before)
        last = counts[kept - 1] + beyond
        own = entropy[kept - 1] + last * np.log(last)
        out[kept] = (own - cross) / total + np.log(mass[kept] / total)


@kernel(f64(f64_in, f64_in, f64_in, f64_in, f64, f64, f64))
def _integral(
    counts: NDArray[np.float64],
    zeroth: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    begin: float,
    end: float,
    value: float,
) -> float:
    """Integral of ``(t - value)**2`` times the density over ``begin .. end``; the unit of length is one bin."""
    total = 0.0
    for sign, t in ((-1.0, begin), (1.0, end)):
        i = min(int(t), counts.size - 1)
        c = counts[i]
        m0 = zeroth[i] + c * (t - i)
        m1 = first[i] + c * (t * t - i * i) / 2.0
        m2 = second[i] + c * (t * t * t - i * i * i) / 3.0
        total += sign * (m2 - 2.0 * value * m1 + value * value * m0)
    return total


@kernel(f64(f64_in, f64_in, f64_in, f64_in, i64, i64, i64))
def _loss(
    counts: NDArray[np.float64],
    zeroth: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    left: int,
    right: int,
    levels: int,
) -> float:
    """Expected squared error, in squared bins, of `levels` cells over the bins `left` to `right`, outside included."""
    cell = (right - left + 1) / levels
    total = 0.0
    for level in range(levels):
        begin = 0.0 if level == 0 else left + level * cell
        end = float(counts.size) if level == levels - 1 else left + (level + 1) * cell
        total += _integral(counts, zeroth, first, second, begin, end, left + (level + 0.5) * cell)
    return total


@kernel(i64_pair(f64_in, f64, i64, f64))
def greedy_shrink(counts: NDArray[np.float64], step: float, levels: int, width: float) -> tuple[int, int]:
    """Return the first and the last bin kept. The whole range is no candidate, as published."""
    size = counts.size
    zeroth = np.zeros(size + 1)
    first = np.zeros(size + 1)
    second = np.zeros(size + 1)
    for i in range(size):
        a, b = float(i), float(i + 1)
        zeroth[i + 1] = zeroth[i] + counts[i]
        first[i + 1] = first[i] + counts[i] * (b * b - a * a) / 2.0
        second[i + 1] = second[i] + counts[i] * (b * b * b - a * a * a) / 3.0
    left, right = 0, size - 1
    best_left, best_right, best = 0, size - 1, np.inf
    stop = (size + 3) // 4
    while right - left > stop:
        next_left, dropped = left, 0.0
        while next_left < right and dropped < step:
            dropped += counts[next_left]
            next_left += 1
        next_right, dropped = right, 0.0
        while next_right > left and dropped < step:
            dropped += counts[next_right]
            next_right -= 1
        if next_left - left > right - next_right:
            left = next_left
        else:
            right = next_right
        tiny = width * (right - left + 1) / levels < _EPSILON
        loss = 0.0 if tiny else _loss(counts, zeroth, first, second, left, right, levels)
        if loss < best:
            best_left, best_right, best = left, right, loss
    return best_left, best_right
