from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calib.images import center_crop, decode, normalize, preprocess, preprocess_file, resize, to_color
from onnxq.calib.prefetch import prefetch
from onnxq.errors import DataError
from onnxq.recipe import ImagePreprocess

RNG = np.random.default_rng(0)
CV2 = {
    "linear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def with_orientation(jpeg: bytes, value: int) -> bytes:
    """Insert an EXIF block that holds the orientation tag only."""
    tiff = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + value.to_bytes(4, "little") + b"\0\0\0\0"
    block = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


def test_decoding_equals_opencv(tmp_path: Path) -> None:
    image = picture()
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        path = tmp_path / f"x{suffix}"
        cv2.imwrite(str(path), image)
        np.testing.assert_array_equal(decode(path.read_bytes()), cv2.imread(str(path), cv2.IMREAD_COLOR))


def test_decoding_reduces_gray_alpha_and_16_bit() -> None:
    gray = encoded(picture()[:, :, 0])
    assert decode(gray).shape == (40, 60, 3)
    alpha = encoded(np.dstack([picture(), picture()[:, :, :1]]))
    assert decode(alpha).shape == (40, 60, 3)
    deep = encoded(picture().astype(np.uint16) * 257)
    assert decode(deep).dtype == np.uint8


def test_orientation_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    jpeg = encoded(picture(), ".jpg")
    turned = with_orientation(jpeg, 6)
    np.testing.assert_array_equal(decode(turned), decode(jpeg))
    np.testing.assert_array_equal(decode(turned, orientation=True), cv2.rotate(decode(jpeg), cv2.ROTATE_90_CLOCKWISE))
    path = tmp_path / "x.jpg"
    path.write_bytes(turned)
    assert preprocess_file(path, ImagePreprocess()).shape == (1, 3, 40, 60)
    assert preprocess_file(path, ImagePreprocess(orientation=True)).shape == (1, 3, 60, 40)


def test_colors_equal_opencv() -> None:
    image = picture()
    np.testing.assert_array_equal(to_color(image, "BGR"), image)
    np.testing.assert_array_equal(to_color(image, "RGB"), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    np.testing.assert_array_equal(to_color(image, "GRAY")[:, :, 0], cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("method", sorted(CV2))
def test_resizing_equals_opencv(method: str) -> None:
    image = picture()
    direct = ImagePreprocess(size=(24, 30), interpolation=method)
    np.testing.assert_array_equal(resize(image, direct), cv2.resize(image, (30, 24), interpolation=CV2[method]))
    short = ImagePreprocess(resize_short_side=25, interpolation=method)
    np.testing.assert_array_equal(resize(image, short), cv2.resize(image, (37, 25), interpolation=CV2[method]))


def test_resizing_keeps_one_channel_and_what_fits() -> None:
    gray = picture()[:, :, :1]
    assert resize(gray, ImagePreprocess(size=8)).shape == (8, 8, 1)
    assert resize(gray, ImagePreprocess(size=(40, 60))) is gray
    assert resize(gray, ImagePreprocess()) is gray


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_short_side_is_exact_and_the_other_in_proportion(height: int, width: int, short: int) -> None:
    config = ImagePreprocess(resize_short_side=short)
    result = resize(np.zeros((height, width, 3), np.uint8), config).shape
    assert min(result[:2]) == short
    assert max(result[:2]) == short * max(height, width) // min(height, width)


def test_center_crop_and_its_refusal() -> None:
    image = picture(9, 12)
    np.testing.assert_array_equal(center_crop(image, (4, 7)), image[2:6, 2:9])
    np.testing.assert_array_equal(center_crop(image, (9, 12)), image)
    with pytest.raises(DataError, match=r"9 x 12 .* smaller than crop 10 x 4"):
        center_crop(image, (10, 4))


def test_normalizing_is_scale_then_mean_then_std_in_float32() -> None:
    image = picture()
    config = ImagePreprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = cv2.divide(
        cv2.subtract(image.astype(np.float32) * np.float32(1 / 255), np.full(image.shape, config.mean, np.float32)),
        np.full(image.shape, config.std, np.float32),
    )
    result = normalize(image, config)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    raw = normalize(image, ImagePreprocess(scale=1, mean=127.5, std=127.5))
    np.testing.assert_array_equal(raw, (image.astype(np.float32) - 127.5) / 127.5)


@pytest.mark.parametrize(
    ("layout", "color", "shape"),
    [
        ("NCHW", "RGB", (1, 3, 6, 8)),
        ("NHWC", "BGR", (1, 6, 8, 3)),
        ("NCHW", "GRAY", (1, 1, 6, 8)),
        ("NHWC", "GRAY", (1, 6, 8, 1)),
    ],
)
def test_layouts(layout: str, color: str, shape: tuple[int, ...]) -> None:
    image = picture()
    config = ImagePreprocess(resize_short_side=10, crop=(6, 8), scale=1, layout=layout, color=color)
    result = preprocess(image, config)
    assert result.shape == shape
    assert result.flags.c_contiguous
    pixels = result[0].transpose(1, 2, 0) if layout == "NCHW" else result[0]
    expected = center_crop(cv2.resize(to_color(image, color), (15, 10)).reshape(10, 15, -1), (6, 8))
    np.testing.assert_array_equal(pixels, expected.astype(np.float32))


@pytest.mark.parametrize("content", [b"", b"no image", encoded(picture(), ".jpg")[:20]])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg: is not an image"):
        preprocess_file(path, ImagePreprocess())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: cannot be read: No such file"):
        preprocess_file(tmp_path / "none.png", ImagePreprocess())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(), max_size=20), st.integers(1, 6))
def test_prefetching_keeps_items_and_order(items: list[int], depth: int) -> None:
    assert list(prefetch(iter(items), depth)) == items


def test_prefetching_gives_what_was_ready_before_an_error() -> None:
    def failing():
        yield 1
        yield 2
        raise DataError("third is broken")

    items = prefetch(failing(), 4)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(DataError, match="third is broken"):
        next(items)


def test_prefetching_is_bounded_and_stops_when_abandoned() -> None:
    taken: list[int] = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    before = threading.active_count()
    items = prefetch(endless(), 3)
    assert next(items) == 0
    time.sleep(0.05)
    assert len(taken) <= 5
    items.close()
    assert threading.active_count() == before
    count = len(taken)
    time.sleep(0.02)
    assert len(taken) == count
