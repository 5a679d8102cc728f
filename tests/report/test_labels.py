"""Label files: every form that is read, and what is wrong with those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.calib.readers import Folders
from onnxq.errors import DataError
from onnxq.report.labels import check_range, read_labels


@pytest.fixture
def images(tmp_path):
    """A folder with three data files, in natural order img2, img10, sub/img1."""
    folder = tmp_path / "eval"
    (folder / "sub").mkdir(parents=True)
    for name in ("img10.png", "img2.png", "sub/img1.png"):
        (folder / name).write_bytes(b"")
    (folder / "readme.txt").write_text("no data")
    return folder


def read(tmp_path, text, data=None):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_labels(path, data or tmp_path).tolist()


def test_npy(tmp_path):
    np.save(tmp_path / "l.npy", np.array([3, 1, 2], np.uint8))
    labels = read_labels(tmp_path / "l.npy", tmp_path)
    assert labels.tolist() == [3, 1, 2]
    assert labels.dtype == np.int64


@pytest.mark.parametrize("array", [np.array([1.0, 2.0]), np.array([[1], [2]]), np.array(3), np.array(["a"])])
def test_npy_of_anything_else(tmp_path, array):
    np.save(tmp_path / "l.npy", array)
    with pytest.raises(DataError, match="whole numbers of shape"):
        read_labels(tmp_path / "l.npy", tmp_path)


def test_npy_with_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "l.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a \.npy file of numbers"):
        read_labels(tmp_path / "l.npy", tmp_path)


@pytest.mark.parametrize("text", ["5\n6\n7\n", "label\n5\n6\n7\n", "\n5\n\n6\n7", "\ufefflabel\n5\n6\n7\n"])
def test_one_column(tmp_path, text):
    assert read(tmp_path, text) == [5, 6, 7]


def test_index_and_label_in_any_order_of_rows_and_columns(tmp_path):
    assert read(tmp_path, "index,label\n2,7\n0,5\n1,6\n") == [5, 6, 7]
    assert read(tmp_path, "Label,name,Index\n7,c,2\n5,a,0\n6,b,1\n") == [5, 6, 7]


@pytest.mark.parametrize(
    "names",
    [
        ("img2.png", "img10.png", "sub/img1.png"),  # relative to the data
        ("eval/img2.png", "eval/img10.png", "eval/sub/img1.png"),  # relative to the file of labels
        ("elsewhere/img2.png", "elsewhere/img10.png", "elsewhere/img1.png"),  # by bare name
    ],
)
def test_files_give_labels_in_the_order_the_data_are_read(tmp_path, images, names):
    text = "file,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, (2, 10, 1), strict=True))
    assert read(tmp_path, text + "unused.png,99\n", images) == [2, 10, 1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("file,class\na,1\n", "file,label or index,label"),
        ("1,2\n3,4\n", "file,label or index,label"),
        ("label\n1\nx\n", "line 3: label 'x' is not a whole number"),
        ("index,label\n0,1\n0,2\n", "index 0 is given twice"),
        ("index,label\n0,1\n2,2\n", "sample 1 has no label"),
        ("index,label\n0,1\n1\n", "line 3 has 1 columns"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, match):
    with pytest.raises(DataError, match=match):
        read(tmp_path, text)


def test_a_file_without_a_label_is_named(tmp_path, images):
    with pytest.raises(DataError, match=r"img10\.png of .*eval has no label; did you mean"):
        read(tmp_path, "file,label\nimg2.png,0\nimg1O.png,1\nsub/img1.png,2\n", images)


def test_a_bare_name_with_two_labels_is_not_guessed(tmp_path, images):
    with pytest.raises(DataError, match=r"img2\.png .* has no label"):
        read(tmp_path, "file,label\na/img2.png,0\nb/img2.png,1\nimg10.png,1\nsub/img1.png,2\n", images)


def test_file_labels_need_a_folder(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"")
    with pytest.raises(DataError, match="no folder; use the columns index,label"):
        read(tmp_path, "file,label\na,1\n", tmp_path / "data.npz")


def test_missing_file(tmp_path):
    for name in ("no.npy", "no.csv"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read: No such file"):
            read_labels(tmp_path / name, tmp_path)


def test_range():
    check_range(np.array([0, 9]), 10)
    with pytest.raises(DataError, match=r"from 1 to 10, the model has the classes 0 to 9; do they count from 1\?"):
        check_range(np.array([1, 10]), 10)
    with pytest.raises(DataError, match="from -1 to 3"):
        check_range(np.array([-1, 3]), 10)
    with pytest.raises(DataError, match="not a single label"):
        check_range(np.array([], dtype=np.int64), 10)


def test_files_of_the_first_of_several_folders_in_their_order(tmp_path, images):
    (tmp_path / "vec").mkdir()
    text = "file,label\nimg2.png,2\nimg10.png,10\n"
    spec = f"image:{images},code:{tmp_path / 'vec'}"
    assert read(tmp_path, text, Path(spec)) == [10, 2]  # in byte order, without sub-folders
    assert read(tmp_path, text, Folders({"image": images, "code": tmp_path / "vec"})) == [10, 2]
    assert read(tmp_path, text, Folders({"image": images}, samples=1)) == [10]
    with pytest.raises(DataError, match=r"img2\.png of .*eval has no label"):
        read(tmp_path, "file,label\nimg10.png,10\n", Path(spec))
