"""NUQ: non-uniform weights. A layer uses only 16 or 32 of its integer codes: those that lose least.

Scales start as those of ARQ. With ``u = w / scale``, the loss of a weight in a channel of scale s is
``s**2 * (u - centre)**2``, and every weight goes to the nearest centre: one-dimensional clustering whose centres are
integers. Between two neighbouring centres the border lies at a multiple of one half, so sums over half-integer bins
say all there is to know, and dynamic programming over the integers finds the best centres exactly.

Source: AMCT's NUQ picks a subset of the 256 INT8 levels; its search is not published.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos._fields import check_choice, check_whole
from onnxq.algos.affine import broadcast_parts, params_from_range, safe_scale
from onnxq.algos.weight._groups import pieces, ranges
from onnxq.errors import CalibrationError
from onnxq.spec import QuantParams, QuantSpec


@dataclass(frozen=True, slots=True)
class NuqConfig:
    """Parameters of `find_params` and `choose_centres`; the defaults are AMCT's.

    Attributes:
        num_steps: How many codes a layer may use: 16 or 32.
        num_of_iteration: How often the scales are fitted to the chosen codes and these are chosen anew, 0 to 5.
    """

    num_steps: int = 32
    num_of_iteration: int = 1

    def __post_init__(self) -> None:
        check_choice("num_steps", self.num_steps, (16, 32))
        check_whole("num_of_iteration", self.num_of_iteration, 0, 5)


def find_params(weight: NDArray[np.generic], spec: QuantSpec, config: NuqConfig) -> QuantParams:
    """Return the scales of ARQ, fitted by least squares to the best centres `num_of_iteration` times.

    Each fit and each new choice of centres lowers the squared error or leaves it. Where no subset is to be chosen, for
    asymmetric codes or where there are no more than `num_steps` of them, the scales are those of ARQ.

    Args:
        weight: Any float type, any shape; a memmap is read in pieces, twice for each iteration.
        spec: Granularity, width and symmetry.
        config: Parameters.

    Raises:
        CalibrationError: If the weight holds NaN or infinity, or lacks the axis.
    """
    low, high = ranges(weight, spec)
    params = params_from_range(low, high, spec, full_range=True)
    if why_not(spec, config) is not None:
        return params
    for _ in range(config.num_of_iteration):
        codes, _ = choose_centres(weight, params, config)
        params = QuantParams(spec, _fitted(weight, codes, params), params.zero_point)
    return params


def choose_centres(
    weight: NDArray[np.generic], params: QuantParams, config: NuqConfig
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the code of each weight and the codes in use, which are the best of all such choices.

    Args:
        weight: Any float type, any shape; a memmap is read in pieces, twice.
        params: Scales; symmetric, signed, at most 8 bits.
        config: Parameters.

    Returns:
        The codes, int8 of the shape of `weight`, each the centre nearest to ``weight / scale`` (the lower one of two),
        and the centres, shape (num_steps,), int8, ascending and different.

    Raises:
        CalibrationError: If the scales do not fit the weight, or the codes are not as above or too few.
    """
    reason = why_not(params.spec, config)
    if reason is not None:
        raise CalibrationError(reason)
    centres = _best_centres(_moments(weight, params), params.spec.bounds, config.num_steps)
    codes = np.empty(weight.shape, np.int8)
    for part, scale, _ in broadcast_parts(weight.shape, params):
        codes[part] = centres[_nearest(_levels(weight[part], scale), centres)]
    return codes, centres


def why_not(spec: QuantSpec, config: NuqConfig) -> str | None:
    """Why no subset of the codes of `spec` can be chosen; None if one can."""
    low, high = spec.bounds
    if not (spec.symmetric and spec.qtype.signed and spec.bits <= 8):
        return f"NUQ chooses among symmetric signed codes of at most 8 bits, not among those of {spec}"
    if high - low + 1 < config.num_steps:
        return f"{spec.bits} bits have {high - low + 1} codes, NUQ is to choose {config.num_steps} of them; use 8 bits"
    return None


def _moments(weight: NDArray[np.generic], params: QuantParams) -> NDArray[np.float64]:
    """Sums of ``s**2``, ``s**2 u`` and ``s**2 u**2`` over half-integer bins, shape (3, bins).

    Bin i holds the weights with ``low + (i - 1) / 2 <= u < low + i / 2``; the first and the last all beyond the codes.
    """
    low, high = params.spec.bounds
    bins = 2 * (high - low) + 2
    sums = np.zeros((3, bins))
    for part, scale, _ in broadcast_parts(weight.shape, params):
        levels = _levels(weight[part], scale)
        index = np.clip(np.floor(2.0 * (levels - low)) + 1.0, 0, bins - 1).astype(np.int64).reshape(-1)
        term = np.broadcast_to(np.square(scale.astype(np.float64)), levels.shape)
        for row in sums:
            row += np.bincount(index, term.reshape(-1), bins)
            term = term * levels
    return sums


def _best_centres(sums: NDArray[np.float64], bounds: tuple[int, int], count: int) -> NDArray[np.int8]:
    """The `count` integers within `bounds` whose nearest neighbour is least far from all weights, ascending."""
    values = np.arange(bounds[0], bounds[1] + 1, dtype=np.float64)
    running = np.concatenate([np.zeros((3, 1)), np.cumsum(sums, axis=1)], axis=1)
    place = np.arange(values.size)

    def loss(begin: NDArray[np.int64], end: NDArray[np.int64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
        zeroth, first, second = running[:, end] - running[:, begin]
        result: NDArray[np.float64] = second - 2.0 * centre * first + centre * centre * zeroth
        return result

    left, right = place[:, None], place[None, :]
    middle = np.broadcast_to(left + right + 1, (values.size, values.size))  # first edge not below the border
    between = loss(2 * left + 1, middle, values[:, None]) + loss(middle, 2 * right + 1, values[None, :])
    between = np.where(left < right, between, np.inf)
    best = loss(np.zeros_like(place), 2 * place + 1, values)
    before = np.zeros((count, values.size), np.int64)
    for step in range(1, count):
        total = best[:, None] + between
        before[step] = np.argmin(total, axis=0)
        best = total[before[step], place]
    last = int(np.argmin(best + loss(2 * place + 1, np.full_like(place, sums.shape[1]), values)))
    chosen = [last]
    for step in range(count - 1, 0, -1):
        chosen.append(int(before[step, chosen[-1]]))
    return (np.array(chosen[::-1]) + bounds[0]).astype(np.int8)


def _fitted(weight: NDArray[np.generic], codes: NDArray[np.int8], params: QuantParams) -> NDArray[np.float32]:
    """The scales with the least squared error for these codes; the old one where they say nothing."""
    products, squares = np.zeros(params.scale.shape), np.zeros(params.scale.shape)
    granularity = params.spec.granularity
    for (own, matrix), (_, code) in zip(pieces(weight, granularity), pieces(codes, granularity), strict=True):
        region = ... if own is None else own
        wide = code.astype(np.float64)
        products[region] += (matrix * wide).sum(axis=1).reshape(products[region].shape)
        squares[region] += np.square(wide).sum(axis=1).reshape(squares[region].shape)
    return safe_scale(np.divide(products, squares, out=params.scale.astype(np.float64), where=products > 0))


def _levels(part: NDArray[np.generic], scale: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(part, np.float32).astype(np.float64) / scale.astype(np.float64)


def _nearest(levels: NDArray[np.float64], centres: NDArray[np.int8]) -> NDArray[np.int64]:
    """Which centre is nearest, the lower one of two."""
    wide = centres.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2.0, levels)
