from __future__ import annotations

import itertools
import threading
from pathlib import Path
from queue import Queue

import cv2
import numpy as np
import pytest

from onnxq.calib import input_folders
from onnxq.calib.feeds import InputInfo
from onnxq.calib.images import preprocess_file
from onnxq.calib.readers import Folders, as_reader, folders_reader, open_data
from onnxq.errors import DataError
from onnxq.recipe import ImagePreprocess

FIRST = InputInfo("first", np.float32, ("N", 3, 6, 8))
LAST = InputInfo("last", np.float32, ("N", 6, 8, 3))
VECTOR = InputInfo("vector", np.float32, ("N", 4))
MINDSPORE = ImagePreprocess(
    normalize="before_resize", scale=1, orientation=True, color="BGR", size=(6, 8), mean=(1, 2, 3), std=(4, 5, 6)
)


def images(folder: Path, names: list[str]) -> Path:
    """One random image per name."""
    folder.mkdir()
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (folder / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder


def buffers(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(array.astype("<f4").tobytes())
    return folder


def vectors(folder: Path, count: int) -> Path:
    return buffers(folder, {f"{i}.bin": np.full(4, i, np.float32) for i in range(count)})


def test_the_nth_files_of_all_folders_make_the_nth_feed(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "a.png", "B.png"]
    a, b = images(tmp_path / "a", names), vectors(tmp_path / "b", 4)
    reader = folders_reader({"vector": b, "first": a}, [FIRST, VECTOR], preprocess=MINDSPORE)
    feeds = list(reader)
    assert [list(feed) for feed in feeds] == [["first", "vector"]] * 4
    for index, (name, feed) in enumerate(zip(["10.png", "2.png", "B.png", "a.png"], feeds, strict=True)):
        np.testing.assert_array_equal(feed["first"], preprocess_file(a / name, MINDSPORE))
        np.testing.assert_array_equal(feed["vector"], np.full((1, 4), index))
    assert reader.describe() == f"4 files from each of {a} ('first', image), {b} ('vector', bin)"


def test_every_pass_gives_the_same_whatever_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"first": images(tmp_path / "a", [f"{i}.png" for i in range(15)]), "vector": vectors(tmp_path / "b", 15)}
    digests, passes = set(), []
    for workers in (1, 2, 4):
        monkeypatch.setattr(input_folders, "decode_workers", lambda n=workers: n)
        reader = folders_reader(folders, [FIRST, VECTOR], preprocess=MINDSPORE)
        passes += [np.concatenate([feed["first"] for feed in reader]) for _ in range(2)]
        digests.add(reader.digest())
    assert len(digests) == 1
    for found in passes:
        np.testing.assert_array_equal(found, passes[0])


def test_so_many_files_of_each_folder_and_not_fewer(tmp_path: Path) -> None:
    a, b = vectors(tmp_path / "a", 5), vectors(tmp_path / "b", 3)
    inputs = [InputInfo("a", np.float32, ("N", 4)), InputInfo("b", np.float32, ("N", 4))]
    with pytest.raises(DataError, match=r"different numbers of files: 'a' 5, 'b' 3; the n-th files"):
        folders_reader({"a": a, "b": b}, inputs)
    reader = folders_reader({"a": a, "b": b}, inputs, samples=3)
    assert [feed["a"][0, 0] for feed in reader] == [0, 1, 2]
    with pytest.raises(DataError, match=r"b: 4 samples are asked for, but there are only 3 bin files for input 'b'"):
        folders_reader({"a": a, "b": b}, inputs, samples=4)


def test_a_kind_that_is_said_takes_every_file_whatever_it_is_called(tmp_path: Path) -> None:
    a = buffers(tmp_path / "a", {"input_1": np.ones(4), "input_0.raw": np.zeros(4), ".hidden": np.zeros(9)})
    (a / "below").mkdir()
    with pytest.raises(DataError, match=r"a: holds no image, \.bin or \.npy files"):
        folders_reader({"vector": a}, [VECTOR])
    reader = folders_reader({"vector": a}, [VECTOR], kind="bin")
    assert [feed["vector"][0, 0] for feed in reader] == [0, 1]
    b = images(tmp_path / "b", ["x", "y.dat"])
    mixed = Folders({"vector": a, "first": b}, {"vector": "bin", "first": "image"}, {"first": MINDSPORE})
    assert [sorted(feed) for feed in as_reader(mixed, [FIRST, VECTOR])] == [["first", "vector"]] * 2


def test_folders_that_are_no_use(tmp_path: Path) -> None:
    a = vectors(tmp_path / "a", 2)
    images(tmp_path / "b", ["0.png"])
    (tmp_path / "b" / "1.bin").write_bytes(bytes(16))
    (tmp_path / "empty").mkdir()
    for folder, problem in (
        ("none", "none: does not exist; give a folder per input"),
        ("a/0.bin", r"0\.bin: is no folder"),
        ("b", r"several kinds of data files \(1 bin, 1 image\)"),
        ("empty", r"holds no image, \.bin or \.npy files"),
    ):
        with pytest.raises(DataError, match=problem):
            folders_reader({"vector": tmp_path / folder}, [VECTOR])
    with pytest.raises(DataError, match="empty: holds no files"):
        folders_reader({"vector": tmp_path / "empty"}, [VECTOR], kind="bin")
    with pytest.raises(DataError, match=r"a folder is given for 'vectr', which is not an input .*'vector'"):
        folders_reader({"vectr": a}, [VECTOR])
    with pytest.raises(DataError, match=r"there is no folder for input 'first'; the model has 2 inputs"):
        folders_reader({"vector": a}, [FIRST, VECTOR])
    with pytest.raises(DataError, match="a layout is given for 'w', which is not an input"):
        folders_reader({"vector": a}, [VECTOR], layouts={"w": "NHWC"})
    with pytest.raises(
        DataError, match=r"shape \[1, 5\] is given for input 'vector', but the model has float32\[N, 4\]"
    ):
        folders_reader({"vector": a}, [VECTOR], shapes={"vector": (1, 5)})


def test_bin_files_are_transposed_to_the_models_layout_and_it_is_said(tmp_path: Path) -> None:
    x = np.arange(144, dtype=np.float32).reshape(1, 6, 8, 3)
    a = buffers(tmp_path / "a", {"0.bin": x})
    to_first = folders_reader({"first": a}, [FIRST], kind="bin", layouts="NHWC")
    np.testing.assert_array_equal(next(iter(to_first))["first"], x.transpose(0, 3, 1, 2))
    (note,) = to_first.notes
    assert note == (
        "input 'first': .bin files hold NHWC and are transposed to NCHW, which the model's input "
        "float32[N, 3, 6, 8] has: its second dimension is 3"
    )
    as_it_is = folders_reader({"last": a}, [LAST], layouts={"last": "NHWC"})
    np.testing.assert_array_equal(next(iter(as_it_is))["last"], x)
    assert as_it_is.notes == ()
    unsaid = folders_reader({"last": a}, [LAST])
    np.testing.assert_array_equal(next(iter(unsaid))["last"], x)
    unsure = InputInfo("state", np.float32, (1, 2, 36, 2))
    (note,) = folders_reader({"state": a}, [unsure], layouts="NHWC").notes
    assert note.endswith(
        "its shape does not tell, and ONNX's operators want channels first; "
        "say NCHW of files that are as the model has them"
    )
    told = folders_reader({"last": a}, [LAST], layouts="NHWC", model_layouts={"last": "NCHW"})
    assert "it was said so" in told.notes[0]


def test_a_layout_for_all_leaves_other_ranks_alone(tmp_path: Path) -> None:
    x = np.arange(144, dtype=np.float32).reshape(1, 6, 8, 3)
    folders = {"first": buffers(tmp_path / "a", {"0.bin": x}), "vector": vectors(tmp_path / "b", 1)}
    (feed,) = folders_reader(folders, [FIRST, VECTOR], layouts="NHWC", model_layouts="NCHW")
    np.testing.assert_array_equal(feed["first"], x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(feed["vector"], np.zeros((1, 4)))
    for setting in ("layouts", "model_layouts"):
        with pytest.raises(DataError, match=r"input 'vector' is float32\[N, 4\]; a layout is about 4 dimensions"):
            folders_reader(folders, [FIRST, VECTOR], **{setting: {"vector": "NHWC"}})


def test_shapes_of_free_dimensions_can_be_said(tmp_path: Path) -> None:
    free = InputInfo("x", np.float32, ("N", 3, "H", "W"))
    x = np.arange(144, dtype=np.float32).reshape(1, 6, 8, 3)
    a = buffers(tmp_path / "a", {"0.bin": x})
    with pytest.raises(DataError, match=r"0\.bin: holds 576 bytes, but dimensions \[2, 3\] of input 'x'"):
        list(folders_reader({"x": a}, [free], layouts="NHWC"))
    (feed,) = folders_reader({"x": a}, [free], layouts="NHWC", shapes={"x": (1, 3, 6, 8)})
    np.testing.assert_array_equal(feed["x"], x.transpose(0, 3, 1, 2))


def test_images_are_fitted_to_the_models_layout(tmp_path: Path) -> None:
    a = images(tmp_path / "a", ["0.png"])
    first, last = (folders_reader({i.name: a}, [i], preprocess=MINDSPORE) for i in (FIRST, LAST))
    np.testing.assert_array_equal(next(iter(first))["first"].transpose(0, 2, 3, 1), next(iter(last))["last"])
    assert first.notes == ()
    (note,) = last.notes
    assert note == (
        "input 'last' (float32[N, 6, 8, 3]) is taken as NHWC: its last dimension is 3, its second is not 1 or 3; "
        "say layout NCHW where that is wrong"
    )
    told = folders_reader({"last": a}, [LAST], preprocess=MINDSPORE, model_layouts="NCHW")
    with pytest.raises(DataError, match=r"0\.png: input 'last': shape \(1, 3, 6, 8\) has 3 at axis 1"):
        next(iter(told))
    unsure = open_data(a, [InputInfo("x", np.float32, ("N", "C", "H", "W"))], preprocess=ImagePreprocess())
    assert next(iter(unsure))["x"].shape == (1, 3, 12, 16)
    assert "is taken as NCHW: its shape does not tell" in unsure.notes[0]


def test_arrays_with_and_without_a_batch_axis(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "0.npy", np.zeros(4, np.float32))
    np.save(tmp_path / "a" / "1.npy", np.ones((2, 4), np.float32))
    shapes = [feed["vector"].shape for feed in folders_reader({"vector": tmp_path / "a"}, [VECTOR])]
    assert shapes == [(1, 4), (2, 4)]


def test_a_bad_file_comes_in_its_place_with_its_name(tmp_path: Path) -> None:
    folders = {"first": images(tmp_path / "a", [f"{i}.png" for i in range(9)]), "vector": vectors(tmp_path / "b", 9)}
    (tmp_path / "a" / "5.png").write_bytes(b"nothing")
    reader = iter(folders_reader(folders, [FIRST, VECTOR], preprocess=MINDSPORE))
    assert len(list(itertools.islice(reader, 5))) == 5
    with pytest.raises(DataError, match=r"a/5\.png: is not an image"):
        next(reader)
    (tmp_path / "b" / "2.bin").write_bytes(bytes(12))
    with pytest.raises(DataError, match=r"b/2\.bin: holds 12 bytes"):
        list(folders_reader(folders, [FIRST, VECTOR], preprocess=MINDSPORE))


@pytest.mark.parametrize("kind", ["image", "bin"])
def test_files_are_read_in_threads_while_feeds_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = images(tmp_path / "a", [f"{i}.png" for i in range(9)]) if kind == "image" else vectors(tmp_path / "a", 9)
    info = FIRST if kind == "image" else VECTOR
    reads: Queue[str] = Queue()
    read_bytes = Path.read_bytes

    def watched(path: Path) -> bytes:
        reads.put(threading.current_thread().name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    monkeypatch.setattr(input_folders, "decode_workers", lambda: 2)
    feeds = iter(folders_reader({info.name: folder}, [info], preprocess=MINDSPORE))
    next(feeds)
    names = {reads.get(timeout=10) for _ in range(4)}  # while the first feed is used
    assert all(name.startswith("onnxq-decode" if kind == "image" else "onnxq-prefetch") for name in names)
    assert len(list(feeds)) == 8


def test_leaving_early_leaves_no_thread(tmp_path: Path) -> None:
    a = images(tmp_path / "a", [f"{i}.png" for i in range(20)])
    before = threading.active_count()
    reader = folders_reader({"first": a}, [FIRST], preprocess=MINDSPORE)
    assert len(list(itertools.islice(reader, 2))) == 2
    assert threading.active_count() == before


def test_a_path_can_name_folders_by_input(tmp_path: Path) -> None:
    a, b = images(tmp_path / "first", ["0.png", "1.png"]), vectors(tmp_path / "vector", 2)
    inputs = [FIRST, VECTOR]
    expected = [dict(feed) for feed in folders_reader({"first": a, "vector": b}, inputs, preprocess=MINDSPORE)]
    for data in (f"first:{a},vector:{b}", Path(f"vector:{b}, first:'{a}'"), tmp_path):
        found = list(open_data(data, inputs, preprocess=MINDSPORE))
        assert len(found) == 2
        for feed, wanted in zip(found, expected, strict=True):
            for name, array in wanted.items():
                np.testing.assert_array_equal(feed[name], array)
    assert len(list(open_data(tmp_path, inputs, preprocess=MINDSPORE, samples=1))) == 1
    mapping = as_reader({"vector": str(b), "first": a}, inputs, preprocess=MINDSPORE, layout="NHWC", samples=1)
    (feed,) = mapping
    np.testing.assert_array_equal(feed["vector"], expected[0]["vector"])


def test_what_folders_leave_open_comes_from_the_recipe(tmp_path: Path) -> None:
    a = images(tmp_path / "a", ["0.png"])
    b = buffers(tmp_path / "b", {"0.bin": np.arange(144, dtype=np.float32).reshape(1, 6, 8, 3)})
    inputs, folders = [FIRST, LAST], Folders({"first": a, "last": b})
    other = MINDSPORE.replace(color="RGB")
    (feed,) = as_reader(folders, inputs, preprocess=other, layout="NCHW")
    np.testing.assert_array_equal(feed["first"], preprocess_file(a / "0.png", other))
    np.testing.assert_array_equal(feed["last"].transpose(0, 3, 1, 2).ravel(), np.arange(144))
    said = Folders({"first": a, "last": b}, preprocess=MINDSPORE, layouts="NHWC")
    (feed,) = as_reader(said, inputs, preprocess=other, layout="NCHW")
    np.testing.assert_array_equal(feed["first"], preprocess_file(a / "0.png", MINDSPORE))
    np.testing.assert_array_equal(feed["last"].ravel(), np.arange(144))


def test_a_path_needs_a_folder_for_each_input(tmp_path: Path) -> None:
    a, b = images(tmp_path / "first", ["0.png"]), vectors(tmp_path / "vector", 1)
    inputs = [FIRST, VECTOR]
    with pytest.raises(DataError, match="there is no folder for input 'vector'"):
        open_data(f"first:{a}", inputs, preprocess=MINDSPORE)
    with pytest.raises(DataError, match=r"the model has 2 inputs .* or a folder for each: input:folder"):
        open_data(b, inputs)


def test_the_layout_of_bin_files_in_one_folder(tmp_path: Path) -> None:
    x = np.arange(288, dtype=np.float32).reshape(2, 6, 8, 3)
    a = buffers(tmp_path / "a", {"0.bin": x})
    reader = open_data(a, [FIRST], layout="NHWC")
    np.testing.assert_array_equal(next(iter(reader))["first"], x.transpose(0, 3, 1, 2))
    assert "transposed to NCHW" in reader.notes[0]
