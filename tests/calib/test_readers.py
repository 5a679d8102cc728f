from __future__ import annotations

import itertools
import threading
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calib import files
from onnxq.calib.feeds import InputInfo
from onnxq.calib.images import preprocess_file
from onnxq.calib.listing import natural_key
from onnxq.calib.readers import (
    Reader,
    as_reader,
    open_data,
)
from onnxq.errors import DataError
from onnxq.recipe import ImagePreprocess

X = InputInfo("x", np.float32, ("N", 3))
RATE = InputInfo("rate", np.int64, ())
IMAGE = InputInfo("image", np.float32, ("N", 3, 8, 8))


def table(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def joined(reader: Reader, name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in reader])


# .npz and .npy tables


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_read_piece_by_piece(tmp_path: Path, save, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "d.npz", x=table(10), rate=np.int64(16000))
    monkeypatch.setattr(files, "BLOCK_BYTES", 50)
    reader = open_data(tmp_path / "d.npz", [X, RATE])
    feeds = list(reader)
    assert [len(feed["x"]) for feed in feeds] == [4, 4, 2]
    assert all(feed["rate"].shape == () and feed["rate"] == 16000 for feed in feeds)
    np.testing.assert_array_equal(joined(reader), table(10))
    assert reader.len_hint() == 10
    assert reader.describe() == f"10 samples from {tmp_path / 'd.npz'}"
    assert isinstance(reader, Reader)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_an_archive(tmp_path: Path, save) -> None:
    wide = InputInfo("x", np.float32, ("N", 4096))
    save(tmp_path / "d.npz", x=np.zeros((4000, 4096), np.float32))
    tracemalloc.start()
    assert sum(len(feed["x"]) for feed in open_data(tmp_path / "d.npz", [wide])) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20 < 4000 * 4096 * 4


def test_all_orders_of_elements(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(table(7)))
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npz", [X])), table(7))
    np.savez(tmp_path / "e.npz", x=table(7).astype(">f4"))
    feed = next(iter(open_data(tmp_path / "e.npz", [X])))
    assert feed["x"].dtype == np.float32
    np.testing.assert_array_equal(feed["x"], table(7))


def test_complete_inputs_on_an_axis_of_their_own(tmp_path: Path) -> None:
    inputs = [InputInfo("x", np.float32, ("N", 3)), InputInfo("state", np.float32, (2, "N", 4))]
    state = np.arange(5 * 2 * 1 * 4, dtype=np.float32).reshape(5, 2, 1, 4)
    np.savez(tmp_path / "d.npz", x=table(5), state=state)
    feeds = list(open_data(tmp_path / "d.npz", inputs))
    assert [(f["x"].shape, f["state"].shape) for f in feeds] == [((1, 3), (2, 1, 4))] * 5
    np.testing.assert_array_equal(feeds[3]["state"], state[3])
    np.savez(tmp_path / "e.npz", x=table(5), state=state[0])
    with pytest.raises(DataError, match=r"'x' 5, 'state' 2\. .* put the samples on a new axis before it"):
        open_data(tmp_path / "e.npz", inputs)


def test_an_input_of_fixed_shape_is_the_same_for_all_samples(tmp_path: Path) -> None:
    anchors = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "d.npz", x=table(5), anchors=anchors)
    (feed,) = open_data(tmp_path / "d.npz", [X, InputInfo("anchors", np.float32, (2, 4))])
    assert feed["x"].shape == (5, 3)
    np.testing.assert_array_equal(feed["anchors"], anchors)


def test_names_of_an_archive_are_checked_when_it_is_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", xx=table(5), rate=1)
    with pytest.raises(DataError, match=r"array 'xx' is not an input of the model; did you mean 'x'\?; input 'x' has"):
        open_data(tmp_path / "d.npz", [X, RATE])


def test_a_single_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", table(5))
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npy", [X])), table(5))
    with pytest.raises(DataError, match=r"the model has 2 inputs \('x', 'rate'\); give \.npz files"):
        open_data(tmp_path / "d.npy", [X, RATE])


def test_damaged_and_dangerous_files_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "d.npz"
    bad.write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"d\.npz: is damaged or not a NumPy archive"):
        open_data(bad, [X])
    np.savez(bad, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="array 'x': holds Python objects"):
        open_data(bad, [X])
    np.save(tmp_path / "d.npy", table(100))
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"d\.npy: array 'd' ends too early"):
        list(open_data(tmp_path / "d.npy", [X]))
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(DataError, match="array 'x': is not a NumPy array file"):
        open_data(bad, [X])


def test_what_is_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; the data are"):
        open_data(tmp_path / "none", [X])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="is no data file"):
        open_data(tmp_path / "a.txt", [X])
    with pytest.raises(DataError, match="holds no data files"):
        open_data(tmp_path, [X])
    np.save(tmp_path / "a.npy", table(1))
    np.savez(tmp_path / "b.npz", x=table(1))
    with pytest.raises(DataError, match=r"several kinds of data files \(1 npy, 1 npz\)"):
        open_data(tmp_path, [X])


def test_no_sample_at_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=table(0))
    with pytest.raises(DataError, match=r"0 samples from .*d\.npz: there is not a single sample"):
        list(open_data(tmp_path / "d.npz", [X]))
    with pytest.raises(DataError, match="not a single sample"):
        list(as_reader([], [X]))


def test_nan_names_file_sample_and_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(10)
    data[7, 1] = np.nan
    np.savez(tmp_path / "d.npz", x=data)
    monkeypatch.setattr(files, "BLOCK_ROWS", 3)
    with pytest.raises(DataError, match=r"d\.npz: sample 7, input 'x': NaN"):
        list(open_data(tmp_path / "d.npz", [X]))
    assert len(joined(open_data(tmp_path / "d.npz", [X], samples=7))) == 7


# folders


def test_a_folder_of_complete_feeds_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        np.savez(tmp_path / f"feed{number}.npz", x=np.full((number, 3), number, np.float32), rate=np.int64(number))
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / ".hidden.npz").write_text("ignored")
    reader = open_data(tmp_path, [X, RATE])
    assert [int(feed["rate"]) for feed in reader] == [1, 2, 10]
    assert reader.len_hint() is None
    limited = open_data(tmp_path, [X, RATE], samples=5)
    assert [len(feed["x"]) for feed in limited] == [1, 2, 2]
    assert limited.describe() == f"the first 5 samples of 3 npz files from {tmp_path}"


@given(st.lists(st.text("a0123é-", min_size=1, max_size=5), max_size=6))
def test_natural_order_is_total(names: list[str]) -> None:
    paths = [Path(name) for name in names]
    ordered = sorted(paths, key=natural_key)
    backwards = paths[::-1]
    assert sorted(backwards, key=natural_key) == ordered
    assert natural_key(Path("a2")) < natural_key(Path("a10")) < natural_key(Path("b1"))
    assert natural_key(Path("a01")) != natural_key(Path("a1"))


def test_a_folder_of_arrays_with_and_without_a_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", table(2))
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "2.npy", table(1)[0])
    assert [feed["x"].shape for feed in open_data(tmp_path, [X])] == [(2, 3), (1, 3)]
    np.save(tmp_path / "3.npy", table(2)[:, :2])
    with pytest.raises(DataError, match=r"3\.npy: input 'x': shape \(2, 2\) has 2 at axis 1"):
        list(open_data(tmp_path, [X]))


def test_raw_files(tmp_path: Path) -> None:
    (tmp_path / "1.bin").write_bytes(table(1).astype("<f4").tobytes())
    (tmp_path / "2.bin").write_bytes(table(4).astype("<f4").tobytes())
    feeds = list(open_data(tmp_path, [X]))
    assert [feed["x"].shape for feed in feeds] == [(1, 3), (4, 3)]
    np.testing.assert_array_equal(feeds[1]["x"], table(4))
    (tmp_path / "3.bin").write_bytes(b"12345")
    with pytest.raises(DataError, match=r"3\.bin: holds 5 bytes \(1\.25 float32 .* takes a multiple of 12 bytes"):
        list(open_data(tmp_path, [X]))
    with pytest.raises(DataError, match=r"dimensions \[1, 2\] of input 'x' .* are all free; use \.npy"):
        list(open_data(tmp_path, [InputInfo("x", np.float32, ("N", None, None))]))
    with pytest.raises(DataError, match=r"needs an input of known type and rank, .*unknown rank\]; use \.npy"):
        list(open_data(tmp_path, [InputInfo("x", np.float32, None)]))


def write_images(folder: Path, count: int, size: tuple[int, int] = (12, 16)) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return paths


def test_a_folder_of_images(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 11)
    config = ImagePreprocess(resize_short_side=10, crop=8, mean=0.5, std=0.25)
    reader = open_data(tmp_path, [IMAGE], preprocess=config)
    expected = np.concatenate([preprocess_file(path, config) for path in paths])
    np.testing.assert_array_equal(joined(reader, "image"), expected)
    assert (reader.len_hint(), reader.describe()) == (11, f"11 image files from {tmp_path}")
    assert open_data(tmp_path, [IMAGE], preprocess=config, samples=4).len_hint() == 4
    one = open_data(paths[3], [IMAGE], preprocess=config)
    np.testing.assert_array_equal(joined(one, "image"), expected[3:4])


def test_image_size_comes_from_the_model_where_the_recipe_leaves_it_open(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1)
    resized = joined(open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess()), "image")
    np.testing.assert_array_equal(resized, preprocess_file(path, ImagePreprocess(size=8)))
    cropped = joined(open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess(resize_short_side=9)), "image")
    np.testing.assert_array_equal(cropped, preprocess_file(path, ImagePreprocess(resize_short_side=9, crop=8)))
    free = InputInfo("image", np.float32, (1, "H", "W", 3))
    assert joined(open_data(tmp_path, [free], preprocess=ImagePreprocess(layout="NHWC")), "image").shape == (
        1,
        12,
        16,
        3,
    )


def test_images_that_cannot_be_fed(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match=r"give calibration\.preprocess in the recipe, or --image-size"):
        open_data(tmp_path, [IMAGE])
    with pytest.raises(DataError, match=r"'x' is float32\[N, 3\]; images need 4 dimensions"):
        open_data(tmp_path, [X], preprocess=ImagePreprocess())
    with pytest.raises(DataError, match=r"0\.png: input 'image': shape \(1, 5, 5, 3\) has 5 at axis 1"):
        list(open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess(size=5, layout="NHWC")))
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1\.png: is not an image"):
        list(open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess()))
    assert len(joined(open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess(), samples=1), "image")) == 1


def test_models_that_want_whole_pixels(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1)
    whole = InputInfo("image", np.uint8, ("N", 12, 16, 3))
    config = ImagePreprocess(scale=1, layout="NHWC", color="BGR")
    pixels = joined(open_data(tmp_path, [whole], preprocess=config), "image")
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[0], cv2.imread(str(path)))
    with pytest.raises(DataError, match="wants uint8 pixels; set scale: 1"):
        list(open_data(tmp_path, [whole], preprocess=config.replace(scale=1 / 255)))


def test_reading_ahead_leaves_no_thread_behind(tmp_path: Path) -> None:
    write_images(tmp_path, 11)
    before = threading.active_count()
    reader = open_data(tmp_path, [IMAGE], preprocess=ImagePreprocess())
    assert len(list(itertools.islice(reader, 2))) == 2
    assert threading.active_count() == before
