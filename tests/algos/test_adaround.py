"""AdaRound: gradients against finite differences, roundings against all there are, scales against AMCT's search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from onnxq.algos.weight import METHODS, config_from_dict, find_params
from onnxq.algos.weight import _adaround_anneal as anneal
from onnxq.algos.weight import _adaround_kernels as kernels
from onnxq.algos.weight.adaround import AdaRoundConfig
from onnxq.algos.weight.rounding import ACTIVATIONS, Activation, Choices, Layer, search, solve
from onnxq.errors import RecipeError
from onnxq.recipe import AdaRound
from onnxq.spec import PerAxis, PerTensor, QType, QuantSpec

SIX = AdaRoundConfig(num_iteration=300)


def activation(name: str, rows: int) -> Activation:
    p = {"leaky": 0.1, "clip": -0.2}.get(name, 0.0)
    q = {"clip": 0.9}.get(name, 0.0)
    return Activation(name, np.full(rows, p, np.float32), np.full(rows, q, np.float32))  # type: ignore[arg-type]


def problem(
    rows: int = 3, columns: int = 6, samples: int = 400, *, groups: int = 1, after: str = "identity", seed: int = 0
) -> tuple[Layer, Choices]:
    """Correlated inputs with a mean, weights of 3 bits, targets of the float weights."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(groups, columns, columns)) / math.sqrt(columns)
    x = (np.matmul(mix, rng.normal(size=(groups, columns, samples))) + 0.5).astype(np.float32)
    weight = (rng.normal(size=(rows, columns)) / math.sqrt(columns)).astype(np.float32)
    bias = rng.normal(size=rows, scale=0.2).astype(np.float32)
    scale = np.broadcast_to(np.abs(weight).max(axis=1, keepdims=True) / 3, weight.shape).astype(np.float32)
    choices = Choices.of(weight, scale, np.full_like(weight, -4), np.full_like(weight, 3))
    empty = Layer(x, np.zeros((rows, samples), np.float32), bias, activation(after, rows))
    return Layer(x, empty.activated(weight), bias, empty.activation), choices


def brute_force(layer: Layer, choices: Choices) -> np.ndarray:
    """The least loss of each output channel over all roundings."""
    rows, columns = choices.base.shape
    best = np.full(rows, np.inf)
    for bits in itertools.product((0, 1), repeat=columns):
        up = np.tile(np.array(bits, np.uint8), (rows, 1))
        best = np.minimum(best, layer.losses(choices.weights(up)))
    return best


def reference(name: str, z: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf)
    return {
        "identity": lambda: z,
        "leaky": lambda: np.where(z >= 0, z, np.float32(0.1) * z),
        "clip": lambda: np.clip(z, -0.2, 0.9),
        "sigmoid": lambda: 1 / (1 + np.exp(-z)),
        "tanh": lambda: np.tanh(z),
        "gelu": lambda: 0.5 * z * (1 + erf(z / math.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    }[name]()


# ---- loss and gradient -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_onnx(name: str) -> None:
    z = np.linspace(-4, 4, 101, dtype=np.float32).reshape(1, -1)
    found = z.copy()
    after = activation(name, 1)
    kernels.activate(found, after.kind, after.p, after.q)
    np.testing.assert_allclose(found, reference(name, z.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_is_that_of_the_loss(name: str, groups: int) -> None:
    layer, choices = problem(6, 5, 128, groups=groups, after=name)
    weight = choices.weights(choices.nearest)
    batches = anneal.Batches.of(layer)
    assert batches.inputs.shape == (1, groups, 5, 128)
    found = anneal.Chunk(layer, batches, slice(0, 6)).gradient(weight, 0).copy()

    def loss(w: np.ndarray) -> float:
        x = np.repeat(layer.inputs.astype(np.float64), 6 // groups, axis=0)
        z = np.einsum("rk,rkm->rm", w, x) + layer.bias[:, None]
        return float(np.square(reference(name, z) - layer.target).sum() / 128)

    for r, k in itertools.product(range(6), range(5)):
        delta = np.zeros(weight.shape)
        delta[r, k] = 1e-4
        slope = (loss(weight + delta) - loss(weight - delta)) / 2e-4
        assert found[r, k] == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_a_chunk_in_the_middle_reads_its_own_group() -> None:
    layer, choices = problem(6, 5, 128, groups=3)
    weight, batches = choices.weights(choices.nearest), anneal.Batches.of(layer)
    whole = anneal.Chunk(layer, batches, slice(0, 6)).gradient(weight, 0).copy()
    part = slice(3, 5)
    np.testing.assert_array_equal(anneal.Chunk(layer, batches, part).gradient(weight[part], 0), whole[part])


def test_loss_by_the_gram_matrix_is_the_loss_of_the_data() -> None:
    layer, choices = problem(4, 7, 500)
    gram, cross = layer.gram()
    wanted = np.square(layer.target - layer.bias[:, None]).mean(axis=1)
    for up in (choices.nearest, 1 - choices.nearest):
        w = choices.weights(up).astype(np.float64)
        quadratic = np.einsum("ri,ij,rj->r", w, gram[0], w) - 2 * (w * cross).sum(axis=1) + wanted
        np.testing.assert_allclose(layer.losses(choices.weights(up)), quadratic, rtol=1e-4, atol=1e-6)


def test_the_step_is_adam_on_the_rectified_sigmoid() -> None:
    _, choices = problem(2, 5, 64)
    state = anneal.start(choices)
    gradient = np.random.default_rng(1).normal(size=choices.base.shape).astype(np.float32)
    alpha = state.alpha.astype(np.float64)
    reg, beta = 0.01, 7.0
    s = 1 / (1 + np.exp(-alpha))
    raw = 1.2 * s - 0.1
    h = np.clip(raw, 0, 1)
    slope = np.where((raw > 0) & (raw < 1), 1.2 * s * (1 - s), 0)
    pull = -2 * beta * reg * np.abs(2 * h - 1) ** (beta - 1) * np.sign(2 * h - 1)
    g = (gradient * choices.step + pull) * slope
    expected = alpha - anneal.rate(SIX) * g / (np.abs(g) + 1e-8)  # the first step of Adam has the gradient's sign
    anneal.advance(state, choices, gradient.copy(), SIX, 0, reg, beta)
    np.testing.assert_allclose(state.alpha, expected, atol=1e-4)
    h = np.clip(1.2 / (1 + np.exp(-state.alpha.astype(np.float64))) - 0.1, 0, 1)
    np.testing.assert_allclose(anneal.soft(state), h, atol=1e-5)
    np.testing.assert_allclose(state.weight, choices.base + h * choices.step, atol=1e-5)


def test_soft_roundings_start_at_the_float_weight() -> None:
    _, choices = problem(4, 20)
    inside = choices.step > 0
    assert inside.any()
    np.testing.assert_allclose(anneal.start(choices).weight[inside], choices.weight[inside], atol=1e-6)


def test_schedule_warms_up_then_falls_along_a_cosine() -> None:
    config = AdaRoundConfig(num_iteration=1000, warm_start=0.2, beta_start=20, beta_end=2, reg_param=0.05)
    assert anneal.schedule(config, 0)[0] == anneal.schedule(config, 199)[0] == 0
    assert anneal.schedule(config, 200) == (0.05, 20.0)
    assert anneal.schedule(config, 600)[1] == pytest.approx(11)
    assert anneal.schedule(config, 999)[1] == pytest.approx(2, abs=1e-3)
    assert anneal.rate(AdaRoundConfig()) == 1e-3  # AMCT's, at AMCT's number of steps


def test_annealing_decides_every_rounding_and_beats_nearest() -> None:
    layer, choices = problem(8, 12, 500)
    up, steps = anneal.run(layer, choices, AdaRoundConfig(num_iteration=1000), np.random.default_rng(0))
    assert 200 < steps <= 1000
    assert layer.losses(choices.weights(up)).sum() < 0.8 * layer.losses(choices.weights(choices.nearest)).sum()


# ---- roundings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_close_to_the_best_of_all_roundings(after: str, seed: int) -> None:
    layer, choices = problem(4, 9, 300, after=after, seed=seed)
    best, nearest = brute_force(layer, choices), layer.losses(choices.weights(choices.nearest))
    found = solve(layer, choices, SIX, np.random.default_rng(0))
    losses = layer.losses(choices.weights(found.up))
    assert (losses <= nearest).all()
    assert losses.sum() <= (1.15 if after == "identity" else 1.001) * best.sum()  # the damping counts on the Gram path
    assert best.sum() < 0.8 * nearest.sum()  # there was something to find
    assert found.loss == pytest.approx(losses.sum())
    assert found.nearest_loss == pytest.approx(nearest.sum())


@pytest.mark.parametrize("after", ACTIVATIONS)
def test_close_to_the_best_where_not_all_are_tried(after: str) -> None:
    layer, choices = problem(6, 11, 300, after=after)
    best = brute_force(layer, choices)
    found = solve(layer, choices, SIX, np.random.default_rng(0))
    assert found.loss <= 1.5 * best.sum()


def test_grouped_layers_are_rounded_group_by_group() -> None:
    layer, choices = problem(8, 9, 300, groups=8, after="clip")
    found = solve(layer, choices, SIX, np.random.default_rng(0))
    assert layer.losses(choices.weights(found.up)).sum() <= 1.1 * brute_force(layer, choices).sum()


@pytest.mark.parametrize("after", ["identity", "clip", "gelu"])
def test_search_never_makes_a_channel_worse(after: str) -> None:
    layer, choices = problem(16, 30, 2000, after=after)
    nearest = layer.losses(choices.weights(choices.nearest))
    found = layer.losses(choices.weights(search(layer, choices, choices.nearest)))
    assert (found <= 1.02 * nearest).all()
    assert found.sum() < 0.7 * nearest.sum()


def test_with_fewer_samples_than_weights_other_data_gain_too() -> None:
    layer, choices = problem(8, 64, 1000)
    few = Layer(layer.inputs[:, :, :40].copy(), layer.target[:, :40].copy(), layer.bias, layer.activation)
    others = Layer(layer.inputs[:, :, 40:].copy(), layer.target[:, 40:].copy(), layer.bias, layer.activation)
    up = solve(few, choices, SIX, np.random.default_rng(0)).up
    assert others.losses(choices.weights(up)).sum() < others.losses(choices.weights(choices.nearest)).sum()


def test_no_iterations_round_to_nearest() -> None:
    layer, choices = problem()
    found = solve(layer, choices, AdaRoundConfig(num_iteration=0), np.random.default_rng(0))
    np.testing.assert_array_equal(found.up, choices.nearest)
    assert (found.loss, found.steps) == (found.nearest_loss, 0)


@pytest.mark.parametrize("after", ["identity", "clip", "tanh"])
def test_threads_do_not_change_a_bit(after: str) -> None:
    layer, choices = problem(70, 24, 600, after=after)
    one, two = (solve(layer, choices, SIX, np.random.default_rng(0), workers=n) for n in (1, 3))
    np.testing.assert_array_equal(one.up, two.up)


def test_clipped_weights_have_one_choice() -> None:
    weight = np.array([[-9.0, -4.0, -3.7, 2.2, 2.9, 3.0, 7.5]], np.float32)
    ones = np.ones_like(weight)
    choices = Choices.of(weight, ones, -4 * ones, 3 * ones)
    np.testing.assert_array_equal(choices.base, [[-4, -4, -4, 2, 2, 3, 3]])
    np.testing.assert_array_equal(choices.step, [[0, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(choices.weights(choices.nearest), [[-4, -4, -4, 2, 3, 3, 3]])


# ---- scales ------------------------------------------------------------------------------------

SPEC = QuantSpec(QType.INT8, PerAxis(0))


def kl_reference(values: np.ndarray) -> int:
    """The window of AMCT's search, written out loop by loop."""
    top = np.abs(values).max()
    counts = np.histogram(values, 512, (-top, top))[0].astype(np.float64)
    losses = []
    for trim in range(20):
        window = counts[trim : 512 - trim].tolist()
        kept = list(window)
        kept[0] += counts[:trim].sum()
        kept[-1] += counts[512 - trim :].sum()
        spread = [0.0] * len(window)
        for level in range(255):
            members = [i for i in range(len(window)) if i * 255 // len(window) == level]
            filled = [i for i in members if window[i] > 0]
            for i in filled:
                spread[i] = sum(window[j] for j in members) / len(filled)
        p, q = (smoothed(np.array(v)) for v in (kept, spread))
        losses.append(float((p * np.log(p / q)).sum()))
    return int(np.argmin(losses))


def smoothed(counts: np.ndarray) -> np.ndarray:
    share = counts / counts.sum()
    empty = share == 0
    share = np.where(empty, 1e-4, np.maximum(share - 1e-4 * empty.sum() / max((~empty).sum(), 1), 1e-4))
    return share / share.sum() if empty.any() else counts / counts.sum()


def test_kl_takes_the_best_of_twenty_windows() -> None:
    rng = np.random.default_rng(0)
    weight = np.stack([rng.standard_t(3, 4000), rng.normal(size=4000), rng.uniform(-1, 1, 4000)]).astype(np.float32)
    params = find_params(weight, SPEC, AdaRoundConfig(scale="kl"))
    top = np.abs(weight).max(axis=1)
    windows = np.array([kl_reference(row) for row in weight])
    assert len(set(windows)) > 1
    np.testing.assert_allclose(params.scale, top * (1 - windows / 256) / 128, rtol=1e-6)
    assert (params.zero_point == 0).all()


def test_kl_of_one_scale_and_of_zeros() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    whole = find_params(weight, QuantSpec(QType.INT8, PerTensor()), AdaRoundConfig(scale="kl"))
    assert whole.scale == pytest.approx(np.abs(weight).max() * (1 - kl_reference(weight) / 256) / 128)
    weight[3] = 0
    assert find_params(weight, SPEC, AdaRoundConfig(scale="kl")).scale[3] == 1


def test_mse_and_absmax_scales_are_those_methods() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    spec = QuantSpec(QType.INT4, PerAxis(0))
    mse = find_params(weight, spec, AdaRoundConfig())
    np.testing.assert_array_equal(mse.scale, find_params(weight, spec, config_from_dict("mse", {})).scale)
    full = find_params(weight, spec, AdaRoundConfig(scale="absmax"))
    expected = find_params(weight, spec, config_from_dict("absmax", {"full_range": True}))
    np.testing.assert_array_equal(full.scale, expected.scale)


def test_configuration_is_that_of_recipes() -> None:
    recipe = AdaRound(scale="kl", num_iteration=7, reg_param=0.1, beta_range=(9.0, 3.0), warm_start=0.5)
    assert config_from_dict("adaround", recipe.parameters()) == AdaRoundConfig("kl", 7, 0.1, 9.0, 3.0, 0.5)
    assert METHODS["adaround"].config() == config_from_dict("adaround", AdaRound().parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", "best"), ("num_iteration", -1), ("reg_param", 0), ("beta_end", 30.0), ("warm_start", 2)],
)
def test_wrong_parameters_are_refused(field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=field):
        config_from_dict("adaround", {field: value})
