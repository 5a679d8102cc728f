from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calib.images import center_crop, decode, normalize, preprocess, preprocess_file, resize, to_color
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
    gray = normalize(image[:, :, :1], ImagePreprocess(color="GRAY", mean=0.5, std=0.25))
    np.testing.assert_array_equal(gray, (image[:, :, :1].astype(np.float32) * np.float32(1 / 255) - 0.5) / 0.25)
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


IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


def by_opencv(image: np.ndarray, color: str, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Colour and normalizing by OpenCV's own functions."""
    codes = {"RGB": cv2.COLOR_BGR2RGB, "GRAY": cv2.COLOR_BGR2GRAY}
    turned = (cv2.cvtColor(image, codes[color]) if color in codes else image).astype(np.float32)
    full = [np.broadcast_to(np.float32(v), turned.shape).copy() for v in (mean, std)]
    return cv2.divide(cv2.subtract(turned, full[0]), full[1])


@pytest.mark.parametrize("method", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize(
    ("color", "mean", "std"),
    [
        ("RGB", IMAGENET["mean"], IMAGENET["std"]),
        ("BGR", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        ("GRAY", (127.5,), (60.0,)),
    ],
)
def test_normalizing_before_resizing_equals_opencv_step_by_step(
    tmp_path: Path, method: str, color: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(picture(47, 61), ".jpg"))
    config = ImagePreprocess(
        normalize="before_resize",
        scale=1,
        color=color,
        mean=mean,
        std=std,
        size=(30, 37),
        crop=(21, 24),
        interpolation=method,
        orientation=True,
        layout="NHWC",
    )
    resized = cv2.resize(by_opencv(cv2.imread(str(path)), color, mean, std), (37, 30), interpolation=CV2[method])
    expected = resized[(30 - 21) // 2 :, (37 - 24) // 2 :][:21, :24].reshape(1, 21, 24, -1)
    np.testing.assert_array_equal(preprocess_file(path, config), expected)
    first = preprocess_file(path, config.replace(layout="NCHW"))
    np.testing.assert_array_equal(first, expected.transpose(0, 3, 1, 2))
    assert first.flags.c_contiguous


def test_the_place_of_normalizing_makes_a_difference() -> None:
    image = picture()
    late = ImagePreprocess(size=(17, 23), interpolation="cubic", scale=1)
    early = late.replace(normalize="before_resize")
    rounded, exact = preprocess(image, late), preprocess(image, early)
    assert rounded.min() >= 0
    assert rounded.max() <= 255
    np.testing.assert_array_equal(rounded, np.rint(rounded))
    assert exact.min() < 0 or exact.max() > 255  # cubic interpolation overshoots
    assert (np.abs(np.clip(exact, 0, 255) - rounded) < 1).all()


def test_the_crop_may_follow_an_exact_size_and_must_fit_into_it() -> None:
    image = picture()
    config = ImagePreprocess(size=(20, 24), crop=(20, 10), scale=1, layout="NHWC", color="BGR")
    resized = cv2.resize(image, (24, 20))
    np.testing.assert_array_equal(preprocess(image, config)[0], resized[:, 7:17])
    with pytest.raises(DataError, match=r"20 x 24 .* smaller than crop 21 x 10"):
        preprocess(image, config.replace(crop=(21, 10)))


def test_layout_auto_without_a_model_is_channels_first() -> None:
    assert ImagePreprocess().layout == "auto"
    assert preprocess(picture(), ImagePreprocess()).shape == (1, 3, 40, 60)
