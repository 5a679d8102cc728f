"""What models are fed when nobody says it, and what does not go together."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.calib.feeds import InputInfo
from onnxq.calib.readers import as_reader
from onnxq.errors import DataError
from onnxq.report.benchmark_feeds import PIXELS, STEPS, common_inputs, converted, data_feeds, parse_shape, random_feeds
from tests.graphs import normal

IMAGE = InputInfo("x", np.float32, ("N", 3, "H", "W"))


def shapes(fed):
    return {name: array.shape for name, array in fed.feeds[0].items()}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("input:1,3,224,224", ("input", (1, 3, 224, 224))),
        ("input:1x3x8x8", ("input", (1, 3, 8, 8))),
        ("serving_default:0:1, 4", ("serving_default:0", (1, 4))),
        ("sr:", ("sr", ())),
    ],
)
def test_shapes_are_read(text, wanted):
    assert parse_shape(text) == wanted


@pytest.mark.parametrize("text", ["input", "1,3", ":1,3", "x:1,-3", "x:1,,3", "x:a", "x:0"])
def test_what_is_no_shape_is_refused_with_an_example(text):
    with pytest.raises(DataError, match=r"input:1,3,224,224"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [
        (("N", 3, "H", "W"), (1, 3, PIXELS, PIXELS)),
        (("N", "H", "W", 3), (1, PIXELS, PIXELS, 3)),
        ((None, 3, None, None), (1, 3, PIXELS, PIXELS)),
        (("N", "T"), (1, STEPS)),
        (("N", "T", 64), (1, STEPS, 64)),
        ((4, 7), (4, 7)),
        ((), ()),
    ],
    ids=str,
)
def test_free_dimensions_have_defaults(dims, wanted):
    assert shapes(random_feeds([InputInfo("x", np.float32, dims)], shapes={}, batch=None)) == {"x": wanted}


def test_what_was_chosen_is_told_and_what_was_given_is_not():
    fed = random_feeds([IMAGE, InputInfo("z", np.float32, ("N", 4))], shapes={}, batch=2)
    (note,) = fed.notes
    assert "input 'x' has free dimensions; measured with 2x3x224x224, --shape x:" in note
    assert random_feeds([IMAGE], shapes={"x": (1, 3, 32, 32)}, batch=None).notes == ()


def test_the_same_name_means_the_same_size():
    other = InputInfo("mask", np.int64, ("N", "H"))
    fed = random_feeds([IMAGE, other], shapes={"x": (2, 3, 32, 64)}, batch=None)
    assert shapes(fed) == {"x": (2, 3, 32, 64), "mask": (2, 32)}
    assert fed.samples == 2


def test_feeds_differ_and_are_the_same_every_time():
    first, again = (random_feeds([InputInfo("x", np.float32, ("N", 4))], shapes={}, batch=3) for _ in range(2))
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first.feeds, again.feeds, strict=True))
    assert not np.array_equal(first.feeds[0]["x"], first.feeds[1]["x"])
    assert first.samples == 3


@pytest.mark.parametrize(
    ("given", "batch", "problem"),
    [
        ({"y": (1, 3, 8, 8)}, None, "'y' is no input of the model"),
        ({"x": (1, 4, 8, 8)}, None, r"x:1,4,8,8: the model wants float32\[N, 3, H, W\]"),
        ({"x": (1, 3, 8)}, None, r"x:1,3,8: the model wants"),
        ({"x": (2, 3, 8, 8)}, 4, "--batch 4: the models' inputs hold 2 samples"),
    ],
    ids=["unknown", "size", "rank", "batch"],
)
def test_shapes_that_do_not_fit_are_refused(given, batch, problem):
    with pytest.raises(DataError, match=problem):
        random_feeds([IMAGE], shapes=given, batch=batch)


def test_two_sizes_of_one_name_are_refused():
    inputs = [IMAGE, InputInfo("mask", np.int64, ("N", "H"))]
    with pytest.raises(DataError, match=r"dimension 'H' is 8 in one input and 9"):
        random_feeds(inputs, shapes={"x": (1, 3, 8, 8), "mask": (1, 9)}, batch=None)


def test_an_input_of_unknown_rank_needs_a_shape():
    info = InputInfo("x", np.float32, None)
    with pytest.raises(DataError, match=r"no known rank; give --shape x:"):
        random_feeds([info], shapes={}, batch=None)
    assert shapes(random_feeds([info], shapes={"x": (2, 2)}, batch=None)) == {"x": (2, 2)}


def test_data_make_whole_batches():
    inputs = [InputInfo("x", np.float32, ("N", 4))]
    fed = data_feeds(as_reader({"x": normal(10, 4)}, inputs), inputs, 4)
    assert [feed["x"].shape[0] for feed in fed.feeds] == [4, 4]
    assert fed.samples == 4
    assert np.array_equal(fed.feeds[1]["x"], normal(10, 4)[4:8])


@pytest.mark.parametrize(
    ("dims", "batch", "problem"),
    [
        (("N", 4), 11, r"--batch 11: .* has fewer samples"),
        ((2, 4), 4, r"--batch 4: the model's batch is fixed at 2"),
    ],
    ids=["few", "fixed"],
)
def test_data_without_such_a_batch_are_refused(dims, batch, problem):
    inputs = [InputInfo("x", np.float32, dims)]
    with pytest.raises(DataError, match=problem):
        data_feeds(as_reader({"x": normal(10, 4)}, inputs), inputs, batch)


def test_models_meet_in_the_sizes_that_one_of_them_fixes():
    fixed = InputInfo("x", np.float16, (1, 3, 32, "W"))
    (info,) = common_inputs([("a", [IMAGE]), ("b", [fixed])])
    assert (info.dtype, info.shape) == (np.dtype(np.float32), (1, 3, 32, "W"))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (InputInfo("z", np.float32, (1,)), "b has the inputs 'z', and a has 'x'"),
        (InputInfo("x", np.float32, (1, 4, 8, 8)), "input 'x' is float32.* in a and .* in b; nothing fits both"),
        (InputInfo("x", np.float32, (1, 3, 8)), "nothing fits both"),
    ],
    ids=["name", "size", "rank"],
)
def test_models_with_nothing_in_common_are_refused(other, problem):
    with pytest.raises(DataError, match=problem):
        common_inputs([("a", [IMAGE]), ("b", [other])])


def test_a_feed_is_converted_without_losing_a_value_or_refused():
    (feed,) = converted([{"x": np.array([[1.5]], np.float32)}], [InputInfo("x", np.float16, (1, 1))], "b")
    assert feed["x"].dtype == np.float16
    with pytest.raises(DataError, match=r"^b does not take what the first model takes: "):
        converted([{"x": np.array([[1.5]], np.float32)}], [InputInfo("x", np.int64, (1, 1))], "b")
