"""Evaluators: binary files become batches, and what is missing is told."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.dialects.amct.evaluator import AutoCalibrationEvaluatorBase, ModelEvaluator
from onnxq.errors import CalibrationError, DataError
from tests.graphs import build, session


@pytest.fixture
def data(tmp_path):
    """Three batches of an image and of indices; the files are not in the order they were made."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 2, 3)).astype("<f4")
    indices = rng.integers(0, 9, size=(3, 4)).astype("<i8")
    for folder, arrays in (("images", images), ("indices", indices)):
        (tmp_path / folder).mkdir()
        for name, array in zip("bca", arrays[[1, 2, 0]], strict=True):
            (tmp_path / folder / f"{name}.bin").write_bytes(array.tobytes())
    (tmp_path / "images" / "readme.txt").write_text("not a batch")
    return tmp_path, images, indices


def evaluator(folder, shapes="x:2,3;i:0:4", types="float32;int64"):
    return ModelEvaluator(f"{folder}/images/;{folder}/indices/", shapes, types)


def test_batches_in_the_order_of_the_names(data):
    folder, images, indices = data
    feeds = list(evaluator(folder).feeds())
    assert [list(feed) for feed in feeds] == [["x", "i:0"]] * 3
    np.testing.assert_array_equal([feed["x"] for feed in feeds], images)
    np.testing.assert_array_equal([feed["i:0"] for feed in feeds], indices)
    assert {feed["x"].dtype for feed in feeds} == {np.dtype(np.float32)}
    assert feeds[0]["x"].flags.writeable
    assert len(list(evaluator(folder).feeds(2))) == 2


def test_a_session_is_run_on_each(data):
    folder, images, _ = data
    seen = []

    class Session:
        def run(self, output_names, feed):
            assert output_names is None
            seen.append(feed["x"])

    only = ModelEvaluator(folder / "images", "x:2,3", "float32")
    only.calibration(Session())
    np.testing.assert_array_equal(seen, images)
    only.calibration(Session(), batch_num=1)
    assert len(seen) == 4
    only.calibration(session(build("g (float[2,3] x) => (float[2,3] y) { y = Relu (x) }")))


def test_a_path_cannot_be_run(data):
    with pytest.raises(DataError, match="needs a model with run"):
        evaluator(data[0]).calibration("model.onnx")


def test_one_type_for_all(data):
    folder, images, _ = data
    feeds = list(ModelEvaluator(f"{folder}/images;{folder}/images", "x:2,3;y:6", "float32").feeds())
    np.testing.assert_array_equal(feeds[0]["y"], images[0].reshape(6))


@pytest.mark.parametrize(
    ("shapes", "types", "problem"),
    [
        ("x:2,3", "float32", "data_dir names 2 folders, input_shape 1 inputs"),
        ("x:2,3;y", "float32", "'y' is not an input and its shape"),
        ("x:2,3;y:", "float32", "'y:' is not an input and its shape"),
        ("x:2,3;y:-1,3", "float32", "all sizes positive"),
        ("x:2,3;y:a,3", "float32", "'y:a,3' is not an input and its shape"),
        ("x:2,3;:2", "float32", "':2' is not an input and its shape"),
        ("x:2,3;x:4", "float32", "names 'x' twice"),
        ("", "float32", "input_shape is empty"),
        ("x:2,3;y:4", "float23;int64", r"unknown type 'float23'; .* did you mean 'float32'"),
        ("x:2,3;y:4", "float32;int64;int64", "data_types names 3 types, input_shape 2 inputs"),
    ],
)
def test_arguments_that_do_not_go_together(data, shapes, types, problem):
    with pytest.raises(DataError, match=problem):
        evaluator(data[0], shapes, types)


def test_files_that_do_not_fit(data):
    folder, *_ = data
    with pytest.raises(DataError, match=r"a\.bin has 24 bytes, input 'x' \(float32 \[2, 4\]\) takes 32"):
        list(evaluator(folder, "x:2,4;i:4").feeds())
    with pytest.raises(DataError, match="batch_num is 4, but there are 3 files"):
        list(evaluator(folder).feeds(4))
    with pytest.raises(DataError, match="batch_num is 0"):
        list(evaluator(folder).feeds(0))
    (folder / "images" / "a.bin").unlink()
    with pytest.raises(DataError, match="different numbers of files: 'x' 2, 'i:0' 3"):
        evaluator(folder)


def test_folders_without_files(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        ModelEvaluator(tmp_path / "no", "x:1", "float32")
    with pytest.raises(DataError, match=r"no \.bin file in"):
        ModelEvaluator(tmp_path, "x:1", "float32")


def test_accuracy_is_the_users_business(data):
    with pytest.raises(CalibrationError, match="ModelEvaluator only calibrates"):
        evaluator(data[0]).evaluate(None)
    with pytest.raises(CalibrationError, match=r"ModelEvaluator has no metric_eval"):
        evaluator(data[0]).metric_eval(1.0, 1.0)

    class Mine(AutoCalibrationEvaluatorBase):
        pass

    with pytest.raises(CalibrationError, match=r"Mine has no calibration\(model\)"):
        Mine().calibration(None)
    with pytest.raises(CalibrationError, match=r"Mine has no evaluate\(model\)"):
        Mine().evaluate(None)
