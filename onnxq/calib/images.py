"""From an image file to a feed, each step as OpenCV does it.

The order: decode to 8 bits per channel, colour, resize, centre crop (all on 8-bit pixels), then
``(x * scale - mean) / std`` in float32, layout, batch axis. With ``normalize: before_resize`` the numbers
are normalized right after the colour, and float32 is resized: cubic interpolation then overshoots, and
nothing is rounded to whole pixels. Decoding gives the pixels as they
are stored: the EXIF orientation is not applied unless `ImagePreprocess.orientation` asks for it
(viewers and phones do, training pipelines built on Pillow or TensorFlow do not), transparency is
dropped and 16-bit images are reduced to 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

Pixels = NDArray[np.uint8]
Image = NDArray[Any]
"""uint8 or float32, shape (H, W, C)."""

_INTERPOLATIONS = {
    "linear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def preprocess_file(path: Path, config: ImagePreprocess) -> NDArray[np.float32]:
    """Read an image file and return what the model is fed.

    Args:
        path: The file.
        config: What to do.

    Returns:
        float32, shape (1, H, W, C) if `config.layout` is NHWC, else (1, C, H, W).

    Raises:
        DataError: If the file is not an image OpenCV reads, or is smaller than the crop.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror or err}") from err
    try:
        return preprocess(decode(data, orientation=config.orientation), config)
    except DataError as err:
        raise DataError(f"{path}: {err}") from err


def decode(data: bytes, *, orientation: bool = False) -> Pixels:
    """Decode an image file.

    Args:
        data: Content of the file.
        orientation: Turn the image as its EXIF tag says.

    Returns:
        uint8, shape (H, W, 3), channels in the order blue, green, red.

    Raises:
        DataError: If OpenCV cannot decode it.
    """
    flags = cv2.IMREAD_COLOR if orientation else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as err:
        raise DataError(f"is not an image that OpenCV can decode: {err.err}") from err
    if image is None:
        raise DataError(f"is not an image that OpenCV can decode ({len(data)} bytes)")
    return cast(Pixels, image)


def preprocess(image: Pixels, config: ImagePreprocess) -> NDArray[np.float32]:
    """Turn pixels into what the model is fed.

    Args:
        image: uint8, shape (H, W, 3), channels in the order blue, green, red.
        config: What to do.

    Returns:
        float32, shape (1, H, W, C) if `config.layout` is NHWC, else (1, C, H, W).

    Raises:
        DataError: If the image is smaller than the crop.
    """
    image = to_color(image, config.color)
    if config.normalize == "before_resize":
        pixels = _fitted(normalize(image, config), config)
    else:
        pixels = normalize(_fitted(image, config), config)
    if config.layout != "NHWC":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[np.newaxis])


def _fitted(image: Image, config: ImagePreprocess) -> Image:
    """Resized and cropped."""
    resized = resize(image, config)
    return resized if config.crop is None else center_crop(resized, config.crop)


def to_color(image: Pixels, color: str) -> Pixels:
    """Reorder or reduce the channels of a blue-green-red image; shape (H, W, 3) or, gray, (H, W, 1)."""
    if color == "RGB":
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    if color == "GRAY":
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[:, :, np.newaxis]
    return image


def resize(image: Image, config: ImagePreprocess) -> Image:
    """Resize to `config.size`, or so that the shorter side is `config.resize_short_side`.

    The longer side is then rounded down to whole pixels. Shape (H, W, C) in and out.
    """
    height, width = image.shape[:2]
    if config.size is not None:
        wanted_height, wanted_width = config.size
    elif config.resize_short_side is not None:
        short = min(height, width)
        wanted_height = max(1, height * config.resize_short_side // short)
        wanted_width = max(1, width * config.resize_short_side // short)
    else:
        return image
    if (height, width) == (wanted_height, wanted_width):
        return image
    method = _INTERPOLATIONS[config.interpolation]
    resized = cv2.resize(image, (wanted_width, wanted_height), interpolation=method)
    # OpenCV drops the last axis of an image with one channel.
    return cast(Image, resized.reshape(wanted_height, wanted_width, image.shape[2]))


def center_crop(image: Image, size: tuple[int, int]) -> Image:
    """Cut `size` (height, width) out of the centre, offsets rounded down; shape (H, W, C) in and out.

    Raises:
        DataError: If the image is smaller.
    """
    height, width = image.shape[:2]
    if height < size[0] or width < size[1]:
        raise DataError(
            f"the image is {height} x {width} (height x width) before cropping, smaller than crop "
            f"{size[0]} x {size[1]}; set size or resize_short_side"
        )
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def normalize(image: Pixels, config: ImagePreprocess) -> NDArray[np.float32]:
    """``(x * scale - mean) / std`` in float32, in this order of operations; shape (H, W, C) in and out.

    A pixel has 256 values only: each is computed once, and then looked up.
    """
    values = np.repeat(np.arange(256, dtype=np.float32)[:, np.newaxis], image.shape[2], axis=1)
    values *= np.float32(config.scale)
    values -= np.asarray(config.mean, np.float32)
    values /= np.asarray(config.std, np.float32)
    return cast(NDArray[np.float32], cv2.LUT(image, values[np.newaxis]).reshape(image.shape))
