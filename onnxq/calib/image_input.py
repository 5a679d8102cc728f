"""Image files as feeds of one input: size and layout that are left open come from the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calib import images
from onnxq.calib.feeds import Array, InputInfo
from onnxq.calib.layouts import Layout, has_layout, layout_of
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How image files become feeds of one input.

    Attributes:
        info: The input.
        config: The preprocessing, complete.
        note: How the layout was decided, where that is worth knowing; may be empty.
    """

    info: InputInfo
    config: ImagePreprocess
    note: str = ""

    @staticmethod
    def of(path: Path, info: InputInfo, preprocess: ImagePreprocess | None, layout: Layout | None = None) -> ImageInput:
        """Complete a preprocessing with what the model says.

        Args:
            path: Where the images are, for messages.
            info: The input.
            preprocess: What the user says.
            layout: The layout of the model's input; None takes `preprocess.layout`, or decides by the shape.

        Raises:
            DataError: If there is no preprocessing, or the input does not have 4 dimensions.
        """
        if preprocess is None:
            raise DataError(
                f"{path}: holds images, but nothing says how they become feeds; give calibration.preprocess in the "
                "recipe, or --image-size, --mean, --std, --color and others. Many models trained on ImageNet take "
                "--resize-short-side 256 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
            )
        if not has_layout(info):
            raise DataError(
                f"{path}: holds images, but the model's input {info.name!r} is {info}; images need 4 dimensions"
            )
        told = layout if layout is not None or preprocess.layout == "auto" else preprocess.layout
        decided = layout_of(info, told)
        note = ""
        if told is None and not (decided.sure and decided.layout == "NCHW"):
            other = "NCHW" if decided.layout == "NHWC" else "NHWC"
            note = (
                f"input {info.name!r} ({info}) is taken as {decided.layout}: {decided.reason}; "
                f"say layout {other} where that is wrong"
            )
        return ImageInput(info, _sized(preprocess.replace(layout=decided.layout), info), note)

    def load(self, path: Path) -> Array:
        """Read an image file.

        Returns:
            shape (1, C, H, W) or (1, H, W, C); float32, or whole numbers where the model wants them.

        Raises:
            DataError: If it is not an image, is smaller than the crop, or its pixels do not fit the model's type.
        """
        image = images.preprocess_file(path, self.config)
        if self.info.dtype.kind not in "iu":
            return image
        whole_numbers = image.astype(self.info.dtype)
        if (whole_numbers != image).any():
            raise DataError(
                f"{path}: the model wants {self.info.dtype.name} pixels; set scale: 1 and leave mean and std out"
            )
        return whole_numbers


def _sized(config: ImagePreprocess, info: InputInfo) -> ImagePreprocess:
    """The preprocessing, with a size that is left open taken from the model where that is fixed."""
    shape = info.shape or ()
    height, width = shape[2:] if config.layout == "NCHW" else shape[1:3]
    if config.size or config.crop or not (isinstance(height, int) and isinstance(width, int)):
        return config
    key = "crop" if config.resize_short_side else "size"
    return config.replace(**{key: (height, width)})
