"""Blocks of 1 to 8 bits: nearest codes, HQQ, GPTQ, AWQ and budgets, against slow references and by their properties."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.algos.weight import awq, gptq, hqq
from onnxq.algos.weight.bit_budget import choose_widths
from onnxq.algos.weight.blocks import encode_blocks, pack_blocks
from onnxq.algos.weight.rtn import PLAIN, SEARCHED, BlockMatrix, BlockShape, round_to_nearest
from onnxq.errors import CalibrationError

shapes = st.builds(
    BlockShape,
    bits=st.integers(1, 8),
    size=st.sampled_from([1, 5, 16, 32, 1000]),
    symmetric=st.booleans(),
    shares=st.sampled_from([PLAIN, SEARCHED]),
)


def weights(rows: int, columns: int, seed: int = 0) -> Any:
    return (np.random.default_rng([seed, rows, columns]).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def inputs_square(columns: int, seed: int = 0, samples: int = 400) -> Any:
    """X·Xᵀ of inputs that depend on each other and differ in magnitude."""
    rng = np.random.default_rng([seed, columns])
    x = rng.normal(size=(columns, columns)) @ rng.normal(size=(columns, samples))
    x *= np.exp(rng.normal(size=(columns, 1)))
    return x @ x.T / samples


def slow_grid(block: Any, cost: Any, shape: BlockShape) -> tuple[float, int]:
    """Scale and zero point of one block, by the definition."""
    low, high, top = min(0.0, float(block.min())), max(0.0, float(block.max())), shape.top
    if shape.symmetric:
        zero = (top + 1) / 2
        full = -low / zero if -low > high else -high / zero
    else:
        full = (high - low) / top
        zero = float(np.clip(np.rint(-low / full), 0, top)) if full else 0.0
    if abs(full) < np.finfo(np.float32).tiny:
        return float(np.finfo(np.float32).tiny), int(zero)
    steps = [float(np.float32(full * share)) for share in shape.shares]
    errors = [squared_error(block, cost, step, zero, shape) for step in steps]
    return steps[int(np.argmin(errors))], int(zero)


def squared_error(block: Any, cost: Any, step: float, zero: float, shape: BlockShape) -> float:
    codes = np.clip(np.rint(block.astype(np.float64) / step) + zero, 0, shape.top)
    return float((cost.astype(np.float64) * ((codes - zero) * step - block) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(shape=shapes, rows=st.integers(1, 4), columns=st.integers(1, 70), seed=st.integers(0, 9), flat=st.booleans())
def test_scales_and_codes_are_those_of_the_definition(
    shape: BlockShape, rows: int, columns: int, seed: int, flat: bool
) -> None:
    matrix = weights(rows, columns, seed)
    if flat:
        matrix[0] = 0
    cost = np.random.default_rng(seed).uniform(0.1, 3, columns).astype(np.float32)
    found = round_to_nearest(matrix, shape, cost)
    for r, b in itertools.product(range(rows), range(shape.blocks(columns))):
        part = slice(b * shape.size, (b + 1) * shape.size)
        step, zero = slow_grid(matrix[r, part], cost[part], shape)
        scale = float(found.scale[r, b])
        assert found.zero_point[r, b] == zero
        if len(shape.shares) == 1:
            assert scale == pytest.approx(step, rel=1e-6)
        else:  # shares are told apart in float32
            best, own = (squared_error(matrix[r, part], cost[part], s, zero, shape) for s in (step, scale))
            assert own <= best * (1 + 1e-4) + 1e-12
        codes = np.clip(np.rint(matrix[r, part].astype(np.float64) / scale) + zero, 0, shape.top)
        np.testing.assert_array_equal(found.codes[r, part], codes)
        decoded = ((codes - zero) * scale).astype(np.float32)
        np.testing.assert_allclose(found.decode()[r, part], decoded, rtol=1e-6)


def test_a_symmetric_block_gives_its_largest_magnitude_exactly_whatever_its_sign() -> None:
    matrix = np.array([[0.1, 0.8, -0.3, 0.2], [0.1, -0.8, 0.3, 0.2]], np.float32)
    found = round_to_nearest(matrix, BlockShape(2, 4, symmetric=True))
    assert (found.scale < 0).tolist() == [[True], [False]]
    np.testing.assert_allclose(found.decode()[[0, 1], [1, 1]], matrix[[0, 1], [1, 1]], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 8), size=st.sampled_from([16, 32, 128]), columns=st.integers(1, 200), container=st.booleans()
)
def test_packed_blocks_decode_to_the_same_numbers(bits: int, size: int, columns: int, container: bool) -> None:
    found = round_to_nearest(weights(5, columns), BlockShape(bits, size))
    width = 8 if container else next(w for w in (2, 4, 8) if w >= bits)
    packed = pack_blocks(found, width)
    assert packed.codes.shape == (5, -(-columns // size), size * width // 8)
    np.testing.assert_array_equal(packed.decode(), found.decode())


@pytest.mark.parametrize("bits", [4, 8])
def test_nearest_codes_are_those_of_plain_block_storage(bits: int) -> None:
    matrix = weights(6, 100)
    ours, plain = round_to_nearest(matrix, BlockShape(bits, 32)), encode_blocks(matrix, bits, 32)
    np.testing.assert_array_equal(pack_blocks(ours, bits).codes, plain.codes)
    np.testing.assert_array_equal(ours.scale, plain.scale)


def test_scales_of_rows_are_repeated_for_blocks() -> None:
    found = round_to_nearest(weights(3, 100), BlockShape(4, 1000))
    finer = found.in_blocks_of(32)
    assert finer.scale.shape == (3, 4)
    np.testing.assert_array_equal(finer.decode(), found.decode())
    with pytest.raises(ValueError, match="cannot be cut"):
        round_to_nearest(weights(3, 100), BlockShape(4, 24)).in_blocks_of(32)


@pytest.mark.parametrize(("bits", "size"), [(0, 16), (9, 16), (4, 0)])
def test_impossible_blocks_are_refused(bits: int, size: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to 8"):
        BlockShape(bits, size)


@pytest.mark.parametrize(("size", "width"), [(24, 4), (8, 4), (32, 2), (32, 3)])
def test_what_no_operator_takes_is_not_packed(size: int, width: int) -> None:
    with pytest.raises(ValueError, match="no such MatMulNBits"):
        pack_blocks(round_to_nearest(weights(3, 48), BlockShape(4, size)), width)


# ---- HQQ ------------------------------------------------------------------------------------------


def slow_hqq(block: Any, step: float, zero: float, shape: BlockShape, config: hqq.HqqConfig) -> tuple[float, float]:
    """Half-quadratic steps on one block in numpy: scale and zero point with the least error."""

    def codes_of(step: float, zero: float) -> Any:
        return np.clip(np.rint(block / step) + zero, 0, shape.top)

    def error(step: float, zero: float) -> float:
        return float((np.abs((codes_of(step, zero) - zero) * step - block) ** config.power).sum())

    best, beta, since = (error(step, zero), step, zero), config.beta, 0
    for _ in range(config.iterations):
        if since == 3:
            break
        steps = codes_of(step, zero) - zero
        gap = block / step - steps
        with np.errstate(divide="ignore"):
            kept = np.sign(gap) * np.maximum(np.abs(gap) - np.abs(gap) ** (config.power - 1) / beta, 0)
        target = block / step - np.where(gap == 0, 0, kept)
        cross, square = float((steps * target).sum()), float((steps**2).sum())
        if not shape.symmetric:
            zero = float(np.clip(np.rint((steps + zero - target).mean()), 0, shape.top))
        if cross > 0 and square > 0:
            step = float(np.float32(step * cross / square))
        beta *= config.kappa
        found = error(step, zero)
        best, since = ((found, step, zero), 0) if found < best[0] else (best, since + 1)
    return best[1:]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_is_the_half_quadratic_iteration(bits: int, symmetric: bool) -> None:
    matrix, shape, config = weights(6, 80), BlockShape(bits, 32, symmetric), hqq.HqqConfig()
    start, found = round_to_nearest(matrix, shape), hqq.half_quadratic(matrix, shape, config)
    for r, b in itertools.product(range(6), range(3)):
        block = matrix[r, b * 32 : (b + 1) * 32].astype(np.float64)
        step, zero = slow_hqq(block, float(start.scale[r, b]), float(start.zero_point[r, b]), shape, config)
        assert (found.scale[r, b], found.zero_point[r, b]) == (pytest.approx(step, rel=1e-5), zero)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, columns=st.integers(1, 90), power=st.sampled_from([0.5, 0.7, 1.0, 2.0]), seed=st.integers(0, 9))
def test_no_block_is_worse_with_hqq(shape: BlockShape, columns: int, power: float, seed: int) -> None:
    matrix = weights(4, columns, seed)
    plain = BlockShape(shape.bits, shape.size, shape.symmetric)
    found = hqq.half_quadratic(matrix, plain, hqq.HqqConfig(power=power))
    before = hqq.lp_errors(matrix, round_to_nearest(matrix, plain), power)
    assert (hqq.lp_errors(matrix, found, power) <= before * (1 + 1e-5) + 1e-9).all()


def test_hqq_saves_a_good_part_of_the_error_of_few_bits() -> None:
    matrix = weights(64, 256)
    for bits, most in ((2, 0.75), (3, 0.85)):
        shape = BlockShape(bits, 128)
        before = hqq.lp_errors(matrix, round_to_nearest(matrix, shape), 0.7).sum()
        assert hqq.lp_errors(matrix, hqq.half_quadratic(matrix, shape, hqq.HqqConfig()), 0.7).sum() < most * before


# ---- GPTQ -----------------------------------------------------------------------------------------


def slow_gptq(matrix: Any, hessian: Any, shape: BlockShape, config: gptq.GptqConfig) -> Any:
    """GPTQ by the optimal-brain-surgeon formula: invert what is left of H for every column, float64."""
    count = matrix.shape[1]
    cost = gptq.importance_of(np.diag(hessian))
    start = round_to_nearest(matrix, shape, cost)
    scale, zero = start.scale.astype(np.float64), start.zero_point.astype(np.float64)
    power = np.diag(hessian)
    damped = hessian + np.eye(count) * config.damping * power.mean() + np.diag(np.where(power <= 0, power.mean(), 0))
    work, codes = matrix.astype(np.float64), np.zeros(matrix.shape)
    left = list(np.argsort(-power, kind="stable") if config.act_order else range(count))
    while left:
        j, b = left[0], left[0] // shape.size
        if not config.act_order and j % shape.size == 0:
            for r in range(len(matrix)):
                block = work[r, j : j + shape.size].astype(np.float32)
                scale[r, b], zero[r, b] = slow_grid(block, cost[j : j + shape.size], shape)
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        codes[:, j] = np.clip(np.rint(work[:, j] / scale[:, b]) + zero[:, b], 0, shape.top)
        lost = work[:, j] - (codes[:, j] - zero[:, b]) * scale[:, b]
        work[:, left] -= np.outer(lost / inverse[0, 0], inverse[0])
        left = left[1:]
    found = BlockMatrix(shape, codes.astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8))
    return gptq.better_rows(matrix, hessian, start, found)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [8, 20, 1000])
def test_gptq_is_the_optimal_brain_surgeon(size: int, act_order: bool) -> None:
    matrix, hessian, shape = weights(5, 40), inputs_square(40), BlockShape(3, size, shares=SEARCHED)
    config = gptq.GptqConfig(act_order=act_order, columns=16)
    found, slow = gptq.compensate(matrix, hessian, shape, config), slow_gptq(matrix, hessian, shape, config)
    ours, wanted = (gptq.output_errors(way.decode() - matrix, hessian) for way in (found, slow))
    np.testing.assert_allclose(ours, wanted, rtol=2e-3)
    assert (found.codes == slow.codes).mean() > 0.99


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes, columns=st.integers(1, 60), seed=st.integers(0, 9), act_order=st.booleans(), unused=st.booleans(),
    samples=st.sampled_from([1, 20, 400]),
)  # fmt: skip
def test_no_row_is_worse_with_gptq(
    shape: BlockShape, columns: int, seed: int, act_order: bool, unused: bool, samples: int
) -> None:
    matrix, hessian = weights(4, columns, seed), inputs_square(columns, seed, samples)
    if unused:
        hessian[0] = hessian[:, 0] = 0
    found = gptq.compensate(matrix, hessian, shape, gptq.GptqConfig(act_order=act_order))
    nearest = round_to_nearest(matrix, shape, gptq.importance_of(np.diag(hessian)))
    before, after = (gptq.output_errors(way.decode() - matrix, hessian) for way in (nearest, found))
    assert (after <= before * (1 + 1e-9)).all()
    assert found.codes.max(initial=0) <= shape.top


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_saves_a_good_part_of_the_output_error(bits: int) -> None:
    matrix, hessian = weights(64, 128), inputs_square(128)
    shape = BlockShape(bits, 32, shares=SEARCHED)
    before = gptq.output_errors(round_to_nearest(matrix, shape).decode() - matrix, hessian).sum()
    found = gptq.compensate(matrix, hessian, shape, gptq.GptqConfig())
    assert gptq.output_errors(found.decode() - matrix, hessian).sum() < 0.5 * before


def test_gptq_with_given_scales_keeps_them() -> None:
    matrix, hessian = weights(8, 48), inputs_square(48)
    start = round_to_nearest(matrix, BlockShape(3, 16))
    found = gptq.compensate_fixed(matrix, hessian, start, gptq.GptqConfig())
    np.testing.assert_array_equal(found.scale, start.scale)
    before, after = (gptq.output_errors(way.decode() - matrix, hessian).sum() for way in (start, found))
    assert after < 0.6 * before


def test_gptq_is_the_same_whatever_the_threads_and_the_chunks() -> None:
    matrix, hessian, shape = weights(30, 100), inputs_square(100), BlockShape(4, 32, shares=SEARCHED)
    found = [gptq.compensate(matrix, hessian, shape, gptq.GptqConfig(), workers=n).codes for n in (1, 3)]
    np.testing.assert_array_equal(*found)
    other = gptq.compensate(matrix, hessian, shape, gptq.GptqConfig(columns=7))
    assert (other.codes == found[0]).mean() > 0.99


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian = inputs_square(150)
    upper = gptq.inverse_factor(hessian, 0.01).astype(np.float64)
    damped = hessian + np.eye(150) * 0.01 * np.diag(hessian).mean()
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(150), atol=1e-5)


def test_inputs_that_were_never_used_and_a_single_sample_are_no_obstacle() -> None:
    matrix = weights(4, 32)
    for hessian in (np.zeros((32, 32)), np.ones((32, 32))):
        found = gptq.compensate(matrix, hessian, BlockShape(4, 16), gptq.GptqConfig())
        assert np.isfinite(found.decode()).all()


def test_nan_is_refused() -> None:
    matrix, hessian = weights(4, 32), inputs_square(32)
    broken = hessian.copy()
    broken[3, 3] = np.nan
    with pytest.raises(CalibrationError, match="inputs hold NaN"):
        gptq.compensate(matrix, broken, BlockShape(4, 16), gptq.GptqConfig())
    matrix[1, 1] = np.inf
    for method in (
        lambda: gptq.compensate(matrix, hessian, BlockShape(4, 16), gptq.GptqConfig()),
        lambda: hqq.half_quadratic(matrix, BlockShape(4, 16), hqq.HqqConfig()),
        lambda: round_to_nearest(matrix, BlockShape(4, 16)),
    ):
        with pytest.raises(CalibrationError, match="weight holds NaN"):
            method()


# ---- AWQ ------------------------------------------------------------------------------------------


def test_awq_finds_the_exponent_that_trying_finds() -> None:
    matrices, hessian = [weights(20, 48), weights(12, 48, seed=1)], inputs_square(48)
    shape = BlockShape(3, 16)
    found = awq.search_factors(matrices, [hessian], [shape, shape], awq.AwqConfig(grid=10))
    x = np.linalg.cholesky(hessian + 1e-9 * np.eye(48))  # any X with this X·Xᵀ
    errors = []
    for step in range(11):
        factors = np.diag(hessian) ** (0.5 * step / 10)
        factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
        total = 0.0
        for matrix in matrices:
            rounded = round_to_nearest(matrix * factors, shape, gptq.importance_of(np.diag(hessian) / factors**2))
            total += float((((rounded.decode() / factors - matrix) @ x) ** 2).sum())
        errors.append(total)
    assert found.exponent == pytest.approx(np.argmin(errors) / 10)
    assert (found.before, found.after) == (pytest.approx(errors[0], rel=1e-4), pytest.approx(min(errors), rel=1e-4))
    assert found.after < found.before


def test_awq_leaves_alone_what_it_does_not_help() -> None:
    found = awq.search_factors([weights(8, 32)], [np.eye(32)], [BlockShape(4, 16)], awq.AwqConfig())
    assert found.exponent == 0
    np.testing.assert_array_equal(found.values, 1)
    assert (awq.factors_for(np.zeros(4), 0.5) == 1).all()


def test_awq_over_spans_of_inputs_counts_their_errors_alone() -> None:
    matrix, hessian, shape = weights(20, 48), inputs_square(48), BlockShape(3, 16)
    hessian[:32, 32:] = hessian[32:, :32] = 0
    whole = awq.search_factors([matrix], [hessian], [shape], awq.AwqConfig())
    spans = awq.search_factors([matrix], [hessian[:32, :32], hessian[32:, 32:]], [shape], awq.AwqConfig())
    assert (whole.exponent, whole.after) == (spans.exponent, pytest.approx(spans.after))


def test_awq_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        awq.AwqConfig(grid=0)
    with pytest.raises(ValueError, match="for 32 inputs"):
        awq.search_factors([weights(8, 32)], [np.eye(31)], [BlockShape(4, 16)], awq.AwqConfig())


# ---- budgets --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(layers=st.integers(1, 5), average=st.floats(2, 8), seed=st.integers(0, 99))
def test_widths_are_the_best_for_the_bits_they_use(layers: int, average: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths, sizes = (2, 3, 4, 8), rng.integers(1, 50, layers).tolist()
    errors = np.sort(rng.exponential(size=(layers, 4)) ** 3, axis=1)[:, ::-1]
    found = choose_widths(errors, widths, sizes, average)
    bits = sum(w * n for w, n in zip(found, sizes, strict=True))
    assert bits <= average * sum(sizes) + 1e-6

    def error(chosen: Any) -> float:
        return float(sum(errors[i, widths.index(w)] for i, w in enumerate(chosen)))

    better = [
        chosen
        for chosen in itertools.product(widths, repeat=layers)
        if sum(w * n for w, n in zip(chosen, sizes, strict=True)) <= bits and error(chosen) < error(found) - 1e-12
    ]
    # the greedy steps are exact until the first one that does not fit; from there on, one layer's step is at stake
    spread = max(errors[i, 0] - errors[i, 3] for i in range(layers))
    assert all(error(found) - error(chosen) <= spread for chosen in better)


def test_a_large_enough_budget_gives_every_layer_its_best_width() -> None:
    errors = [[9.0, 4.0, 1.0], [5.0, 1.0, 1.0]]
    assert choose_widths(np.array(errors), (2, 4, 8), [10, 10], 8) == [8, 4]
    assert choose_widths(np.array(errors), (2, 4, 8), [10, 10], 2) == [2, 2]
    assert choose_widths(np.array(errors), (2, 4, 8), [10, 10], 3.1) == [4, 2]


def test_a_budget_below_the_smallest_width_is_refused() -> None:
    with pytest.raises(ValueError, match="below the smallest width"):
        choose_widths(np.ones((1, 2)), (2, 4), [10], 1.9)
    with pytest.raises(ValueError, match="errors of shape"):
        choose_widths(np.ones((2, 2)), (2, 4), [10], 3)
