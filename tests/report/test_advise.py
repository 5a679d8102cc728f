"""Advice from debug reports: each rule on reports made by hand, and on a model with a layer that was ruined."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import onnxq
from onnxq.errors import DataError
from onnxq.report.advise import Advice, Thresholds, advise
from tests.report.debug_reader import PARAM_HEADER, ROUND_HEADER, SUMMARY_HEADER

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIBRATION = MODELS / "data" / "digits_calib.npz"

Row = tuple[str, str, str, str, tuple[float, float], tuple[float, float], float, float]


def row(
    node: str,
    tensor: str,
    *,
    op: str = "Conv",
    output: bool = False,
    origin: tuple[float, float] = (-1, 1),
    dequant: tuple[float, float] | None = None,
    clip: float = 0,
    cosine: float = 1,
) -> Row:
    """Two rows of a round: what both models have at one place."""
    return node, op, tensor, "Output" if output else "Input", origin, dequant or origin, clip, cosine


def report(
    folder: Path,
    rounds: Sequence[Sequence[Row]],
    params: Mapping[tuple[str, str], tuple[float, int, int]] | None = None,
) -> Path:
    """Write a report by hand."""
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(rounds):
        lines = [ROUND_HEADER]
        for node, op, tensor, flag, origin, dequant, clip, cosine in rows:
            for kind, (low, high), error in (("Origin", origin, "0,1"), ("Dequant", dequant, f"{clip},{cosine}")):
                lines.append(
                    f"{len(lines) - 1},{node},{op},{tensor},{flag},{kind},Activation,{low},0,0,0,{high},0,1,0,{error},"
                )
        (folder / f"round_{number}.csv").write_text("\n".join([*lines, ""]))
    summary = [SUMMARY_HEADER, *(f"{number},y,{0.99 - number / 100}," for number in range(len(rounds))), ""]
    (folder / "output_summary.csv").write_text("\n".join(summary))
    if params is not None:
        lines = [PARAM_HEADER]
        lines += [f"{n},Conv,{t},4,4 ,{s},{z},{b},1,0," for (n, t), (s, z, b) in params.items()]
        (folder / "quant_param.csv").write_text("\n".join([*lines, ""]))
    return folder


def named(found: Advice) -> list[str]:
    return [node.node for node in found.condemned]


# ---- the three rules ---------------------------------------------------------------------------


def test_output_far_from_the_float_models(tmp_path: Path) -> None:
    good = [row("a", "x"), row("a", "t", output=True, cosine=0.995)]
    bad = [row("b", "t", cosine=0.995), row("b", "u", output=True, cosine=0.97)]
    worse = [row("b", "t", cosine=0.995), row("b", "u", output=True, cosine=0.95)]
    found = advise(report(tmp_path, [[*good, *bad], [*good, *worse], [*good, *bad]]))
    assert named(found) == ["b"]
    (charge,) = found.condemned[0].charges
    assert (charge.rule, charge.tensor, charge.figure, charge.limit) == ("cosine", "u", 0.95, 0.99)
    assert (charge.worst_round, charge.bad_rounds, charge.rounds) == (1, (0, 1, 2), 3)
    assert "0.995" in charge.detail
    assert found.outputs["y"] == (pytest.approx(0.98), pytest.approx(0.97))


def test_errors_that_come_from_somewhere_else_are_nobody_elses_fault(tmp_path: Path) -> None:
    rows = [
        row("a", "x"),
        row("a", "t", output=True, cosine=0.95),
        row("b", "t", cosine=0.95),
        row("b", "u", output=True, cosine=0.94),
    ]
    found = advise(report(tmp_path, [rows]))
    assert named(found) == ["a"]
    assert found.inherited == 1
    assert named(advise(tmp_path, Thresholds(own_share=0))) == ["a", "b"]


def test_ranges_that_differ_where_they_come_together(tmp_path: Path) -> None:
    def add(name: str, op: str, narrow: float) -> list[Row]:
        ends = [row(name, "p", op=op, origin=(-narrow, narrow)), row(name, "q", op=op, origin=(-10, 10))]
        return [*ends, row(name, f"{name}_out", op=op, output=True)]

    rows = [*add("near", "Add", 2), *add("far", "Add", 1), *add("cat", "Concat", 0.1), *add("times", "Mul", 0.1)]
    found = advise(report(tmp_path, [rows]))
    assert named(found) == ["far", "cat"]
    (charge,) = found.condemned[0].charges
    assert (charge.rule, charge.tensor, charge.figure) == ("ranges", "p", pytest.approx(10))
    assert "[-10, 10] of q" in charge.detail
    assert named(advise(tmp_path, Thresholds(range_ratio=50))) == ["cat"]


@pytest.mark.parametrize(("zero_point", "low"), [(0, 0.0), (-128, 0.0), (128, -1.28), (0, -1.28)])
def test_values_that_are_cut_off(tmp_path: Path, zero_point: int, low: float) -> None:
    signed = zero_point == -128 or (zero_point, low) == (0, -1.28)
    high = (127 - zero_point if signed else 255 - zero_point) / 100
    rows = [row("a", "x", origin=(low, high + 1), dequant=(low, high), clip=0.2)]
    found = advise(report(tmp_path, [rows], {("a", "x"): (0.01, zero_point, 8)}))
    assert named(found) == ["a"]
    (charge,) = found.condemned[0].charges
    assert (charge.rule, charge.tensor, charge.figure, charge.limit) == ("clip", "x", 0.2, 0.01)
    assert not advise(tmp_path, Thresholds(clip=0.3)).condemned


@pytest.mark.parametrize(
    ("origin", "dequant", "bits"),
    [
        ((0.0, 2.553), (0.0, 2.55), 8),  # rounded
        ((0.0, 2.0), (0.0, 1.5), 8),  # an error from before: there are larger codes
        ((0.0, 3.0), (0.0, 2.55), 32),  # a bias that was corrected
    ],
)
def test_values_that_are_not_cut_off(
    tmp_path: Path, origin: tuple[float, float], dequant: tuple[float, float], bits: int
) -> None:
    rows = [row("a", "x", origin=origin, dequant=dequant, clip=0.4)]
    assert not advise(report(tmp_path, [rows], {("a", "x"): (0.01, 0, bits)})).condemned


def test_nodes_that_are_float_already_are_not_named(tmp_path: Path) -> None:
    rows = [
        row("a", "x"),
        row("a", "t", output=True, cosine=0.9),
        row("b", "s"),
        row("b", "u", output=True, cosine=0.9),
    ]
    folder = report(tmp_path, [rows], {("b", "s"): (0.01, 0, 8)})
    assert named(advise(folder)) == ["b"]
    (folder / "quant_param.csv").unlink()  # then nobody knows
    assert named(advise(folder)) == ["a", "b"]


def test_a_node_must_be_bad_in_enough_rounds(tmp_path: Path) -> None:
    def one(cosine: float) -> list[Row]:
        return [row("a", "x"), row("a", "t", output=True, cosine=cosine)]

    report(tmp_path, [one(0.9), one(1), one(1)])
    assert not advise(tmp_path).condemned
    found = advise(tmp_path, Thresholds(rounds=0.3))
    assert found.condemned[0].charges[0].bad_rounds == (0,)
    report(tmp_path, [one(0.9), one(1), one(0.8)])
    assert advise(tmp_path).condemned[0].charges[0].worst_round == 2


def test_tensors_of_next_to_nothing_have_no_cosine(tmp_path: Path) -> None:
    rows = [row("a", "x"), row("a", "t", output=True, origin=(-1e-6, 1e-6), cosine=0)]
    assert not advise(report(tmp_path, [rows])).condemned


def test_rounds_of_an_earlier_report_do_not_count(tmp_path: Path) -> None:
    bad = [row("a", "x"), row("a", "t", output=True, cosine=0.5)]
    report(tmp_path, [bad, bad, bad])
    good = [row("a", "x"), row("a", "t", output=True, cosine=1)]
    assert not advise(report(tmp_path, [good])).condemned  # round_1.csv and round_2.csv are still there


def test_names_are_given_as_they_have_to_be_written(tmp_path: Path) -> None:
    rows = [
        row(name, "t", output=True, cosine=0.5)
        for name in ("plain", '"a,b"', "layer[0]/conv")  # a comma needs quotes in a CSV file
    ]
    found = advise(report(tmp_path, [rows]))
    assert named(found) == ["plain", "a,b", "layer[0]/conv"]
    assert found.skip_quant_node == "plain,layer[0]/conv"
    assert found.skip == ["plain", "a,b", "layer[[]0]/conv"]


# ---- a model with a layer that was ruined ------------------------------------------------------


def test_a_range_that_was_cut_is_found_and_leaving_its_nodes_float_mends_it(tmp_path: Path) -> None:
    rule = {
        "match": {"node": "block2/second/conv"},
        "activations": {"method": {"name": "percentile", "percentile": 90.0}},
    }
    recipe = {"rules": [rule]}
    ruined = onnxq.quantize(MODELS / "digits_cnn.onnx", CALIBRATION, recipe=recipe)
    onnxq.write_debug(ruined, CALIBRATION, tmp_path / "ruined", rounds=5)
    found = advise(tmp_path / "ruined")
    assert set(named(found)) == {"block2/first/conv", "block2/second/conv", "block2/add"}
    assert all(any(c.rule == "clip" for c in node.charges) for node in found.condemned)
    mended = onnxq.quantize(MODELS / "digits_cnn.onnx", CALIBRATION, recipe={**recipe, "skip": found.skip})
    left = {d.node for d in mended.plan.left_float()}
    assert set(named(found)) <= left
    onnxq.write_debug(mended, CALIBRATION, tmp_path / "mended", rounds=5)
    after = advise(tmp_path / "mended")
    assert not after.condemned
    assert after.outputs["logits"][0] > found.outputs["logits"][0]


def test_a_good_model_has_nothing_to_condemn(tmp_path: Path) -> None:
    result = onnxq.quantize(MODELS / "digits_cnn.onnx", CALIBRATION)
    onnxq.write_debug(result, CALIBRATION, tmp_path / "debug", rounds=3)
    assert not advise(tmp_path / "debug").condemned


# ---- damaged reports ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("output_summary.csv", None, "there is no output_summary.csv"),
        ("round_1.csv", None, "there is no round_1.csv"),
        ("round_0.csv", ("Clip", "Klip"), "no column 'Clip'; did you mean"),
        ("round_0.csv", (",Input,Origin,", ",Inward,Origin,"), r"line 2: InOutFlag is 'Inward'"),
        ("round_0.csv", (",-1,0,0,0,1,", ",-1,0,0,0,one,"), r"line 2: Max is 'one'; must be a number"),
        ("round_1.csv", (",0,1,\n", "\n"), "line 2: .* the file is damaged"),
        ("output_summary.csv", ("0,y", "first,y"), "Round is 'first'"),
        ("output_summary.csv", ("0,y,0.99,\n1,y,0.98,\n", ""), "no rounds"),
        ("quant_param.csv", (",0.01,", ",a,"), "Scale is 'a'"),
        ("round_0.csv", ("a", "\x00"), "round_0.csv"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, change: tuple[str, str] | None, message: str) -> None:
    rows = [row("a", "x"), row("a", "t", output=True)]
    path = report(tmp_path, [rows, rows], {("a", "x"): (0.01, 0, 8)}) / name
    if change is None:
        path.unlink()
    else:
        text = path.read_text()
        assert change[0] in text
        path.write_text(text.replace(change[0], change[1]))
    with pytest.raises(DataError, match=message):
        advise(tmp_path)


def test_folders_that_are_no_reports(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        advise(tmp_path / "missing")
    (tmp_path / "output_summary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        advise(tmp_path)
    (tmp_path / "output_summary.csv").write_bytes(b"")
    with pytest.raises(DataError, match="no column 'Round'"):
        advise(tmp_path)


def test_columns_may_be_spelled_as_older_converters_did(tmp_path: Path) -> None:
    rows = [row("a", "x"), row("a", "t", output=True, cosine=0.5)]
    path = report(tmp_path, [rows]) / "round_0.csv"
    path.write_text(path.read_text().replace("Sparsity", "sparsity"))
    assert named(advise(tmp_path)) == ["a"]


def test_numbers_that_are_none_count_for_nothing(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        row("a", "x", op="Add", origin=(-inf, inf)),
        row("a", "z", op="Add"),
        row("a", "t", output=True, cosine=nan),
    ]
    found = advise(report(tmp_path, [rows]))
    assert not found.condemned
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("limits", [{"cosine": 2.0}, {"clip": -0.1}, {"rounds": 1.5}, {"range_ratio": 0.5}])
def test_thresholds_have_bounds(limits: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(limits))):
        Thresholds(**limits)
