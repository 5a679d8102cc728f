"""PaddleSlim's observers, loop by loop as the specification has them: slow, plain, and independent of onnxq.

Each takes the batches in order, as lists of numbers or arrays whose axis 0 is the samples, and gives the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Batches = Sequence[Array]


def factors(last: float) -> list[float]:
    """0.30, 0.32 ... as a loop that adds 0.02 makes them."""
    found, s = [], 0.3
    while s <= last:
        found.append(s)
        s += 0.02
    return found


def rounded(values: list[float], threshold: float, top: int = 127) -> list[float]:
    out = []
    for v in values:
        q = round(v / threshold * top)  # ties to even
        out.append(min(max(q, -top - 1), top) * threshold / top)
    return out


def squared_error(values: list[float], threshold: float) -> float:
    return sum((a - b) ** 2 for a, b in zip(values, rounded(values, threshold), strict=True)) / len(values)


def moved(values: list[float], threshold: float, *, unbiased: bool = True) -> float:
    def moments(v: list[float]) -> tuple[float, float]:
        mean = sum(v) / len(v)
        return mean, math.sqrt(sum((a - mean) ** 2 for a in v) / (len(v) - unbiased))

    (m1, s1), (m2, s2) = moments(values), moments(rounded(values, threshold))
    return abs(m1 - m2) + abs(s1 - s2)


def avg_strict(batches: Batches) -> float:
    means = []
    for batch in batches:
        peaks = [max(abs(float(v)) for v in sample.reshape(-1)) for sample in batch]
        means.append(sum(peaks) / len(peaks))
    return sum(means) / len(means)


def searched_strict(batches: Batches, kind: str) -> float:
    best, scale = math.inf, 0.0
    for batch in batches:
        values = [float(v) for v in batch.reshape(-1)]
        largest = max(map(abs, values)) if kind == "mse" else max(values)
        largest = largest or 1e-8
        scale = largest
        for s in factors(1.0):
            loss = squared_error(values, s * largest) if kind == "mse" else moved(values, s * largest)
            if loss <= best:
                best, scale = loss, s * largest
    return scale


@dataclass
class Counted:
    """The histogram that grows."""

    bins: int
    counts: list[float] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0

    def add(self, batch: Array) -> None:
        values = [float(v) for v in batch.reshape(-1)]
        low, high = min(values), max(values)
        if low == high:
            return
        if not self.counts:
            self.low, self.high, self.counts = low, high, [0.0] * self.bins
        elif low < self.low or high > self.high:
            self.spread(min(low, self.low), max(high, self.high))
        width = (self.high - self.low) / self.bins
        for v in values:
            self.counts[min(int((v - self.low) / width), self.bins - 1)] += 1

    def spread(self, low: float, high: float) -> None:
        fine = (self.high - self.low) / (self.bins * 64)
        down = math.ceil((high - low) / (self.bins * fine))
        start = round((self.low - low) / fine)
        new = [0.0] * self.bins
        for i, count in enumerate(self.counts):
            for k in range(64):
                place = (start + 64 * i + k) // down
                if place < self.bins:
                    new[place] += count / 64
        self.counts, self.low, self.high = new, low, low + down * self.bins * fine


def counted(batches: Batches, bins: int) -> Counted:
    histogram = Counted(bins)
    for batch in batches:
        histogram.add(batch)
    return histogram


def hist_strict(batches: Batches, bins: int, percent: float) -> tuple[float, float]:
    h = counted(batches, bins)
    width, total = (h.high - h.low) / bins, sum(h.counts)

    def end(share: float) -> float:
        running = 0.0
        for i, count in enumerate(h.counts):
            running += count
            if running / total >= share:
                return h.low + (i - 0.5) * width
        raise AssertionError

    return min(end(1 - percent), 0.0), max(end(percent), 0.0)


def kl_strict(batches: Batches, bins: int) -> float:
    h = counted(batches, bins)
    best, chosen = math.inf, 0
    for i in range(int((bins - 1) * 0.5), bins):
        p = h.counts[:i]
        if p[-1] == 0:
            continue
        p[-1] += sum(h.counts[i:])
        size = int(i / 127)
        q = [0.0] * i
        for group in range(127):
            begin = group * size
            end = i if group == 126 else begin + size
            used = [j for j in range(begin, end) if p[j] != 0]
            for j in used:
                q[j] = sum(h.counts[begin:end]) / len(used)
        p_sum, q_sum = sum(p), sum(q)
        loss = sum(a * (math.log(q_sum * a) - math.log(p_sum * b)) for a, b in zip(p, q, strict=True) if a) / p_sum
        if loss < best:
            best, chosen = loss, i
    return (chosen + 0.5) * (h.high - h.low) / bins


def channel_mse_strict(column: Array) -> float:
    values = [float(v) for v in column.reshape(-1)]
    largest = max(map(abs, values)) or 1e-8
    best, scale = math.inf, largest
    for s in factors(1.0):
        loss = squared_error(values, s * largest)
        if loss < best:
            best, scale = loss, s * largest
    return scale


def moving_absmax(batches: Batches, rate: float = 0.9) -> float:
    state = accum = 1.0
    for batch in batches:
        state = rate * state + 1
        accum = rate * accum + max(abs(float(v)) for v in batch.reshape(-1))
    return accum / state


def lsq_plus_start(batches: Batches, qmin: int, levels: int, batch_init: int, *, slip: bool) -> tuple[float, float]:
    scale = beta = 0.0
    for number, batch in enumerate(batches[:batch_init]):
        values = [float(v) for v in batch.reshape(-1)]
        step = (max(values) - min(values)) / levels
        offset = min(values) - step * qmin
        if number == 0:
            scale, beta = step, offset
            continue
        beta = (scale if slip else beta) * 0.9 + offset * 0.1
        scale = scale * 0.9 + step * 0.1
    return scale, beta
