"""The options that several commands share, and how they are laid over a recipe."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from onnxq.errors import DataError, RecipeError

if TYPE_CHECKING:
    from onnxq.dialects.amct.job import AmctJob
    from onnxq.dialects.amct.retrain_job import RetrainJob
    from onnxq.dialects.mslite.job import CalibrationData, MsliteJob
    from onnxq.recipe import ImagePreprocess, Recipe


class Target(str, Enum):
    """The backends."""

    ORT = "ort"
    TENSORRT = "tensorrt"
    QNN = "qnn"
    ASCEND = "ascend"
    KIRIN = "kirin"


class Method(str, Enum):
    """How the range of an activation is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    KL = "kl"
    MSE = "mse"
    IFMR = "ifmr"
    HFMG = "hfmg"
    REMOVAL_OUTLIER = "removal_outlier"
    AVG = "avg"
    EMD = "emd"


class Layout(str, Enum):
    """Order of an image input's dimensions."""

    AUTO = "auto"
    NCHW = "NCHW"
    NHWC = "NHWC"


class BinLayout(str, Enum):
    """Order of the dimensions of the numbers in .bin files."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Interpolation(str, Enum):
    """How images are resized."""

    LINEAR = "linear"
    NEAREST = "nearest"
    CUBIC = "cubic"
    AREA = "area"


class Normalize(str, Enum):
    """Whether scale, mean and std come last, or in front of resizing."""

    AFTER_CROP = "after_crop"
    BEFORE_RESIZE = "before_resize"


class Color(str, Enum):
    """Order of an image's channels."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


_IMAGES = "Images"
_RECIPE = "Recipe"
_ENOUGH = 16

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document; everything else goes to standard error.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of ONNX Runtime; 0 for all cores.", metavar="N")]
ReportFile = Annotated[Path | None, typer.Option(help="Also write an HTML report.", metavar="FILE", show_default=False)]
Samples = Annotated[int | None, typer.Option(min=1, help="Use the first N samples.", show_default="all", metavar="N")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Recipe in YAML or JSON, or a configuration of AMCT's (quant.cfg, retrain.cfg, or its JSON) or of "
        "MindSpore Lite's converter (full_quant.cfg), or Python with a QuantConfig (my_config.py:q_config).",
        rich_help_panel=_RECIPE,
        metavar="FILE",
        show_default=False,
    ),
]
TargetName = Annotated[
    Target | None,
    typer.Option("--target", help="Backend the model is for.", rich_help_panel=_RECIPE, show_default="ort"),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave these nodes float: a name, a glob over names or an operator type. May be repeated.",
        rich_help_panel=_RECIPE,
        metavar="NAME|GLOB|TYPE",
        show_default=False,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(help="Resize to N x N or HxW.", rich_help_panel=_IMAGES, metavar="N|HxW", show_default="the model's"),
]
ResizeShortSide = Annotated[
    int | None,
    typer.Option(
        min=1, help="Resize so that the shorter side is N.", rich_help_panel=_IMAGES, metavar="N", show_default=False
    ),
]
Crop = Annotated[
    str | None,
    typer.Option(
        help="Cut N x N or HxW out of the centre.", rich_help_panel=_IMAGES, metavar="N|HxW", show_default=False
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(help="Factor of the pixels.", rich_help_panel=_IMAGES, metavar="X", show_default="1/255"),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Subtracted after scaling.", rich_help_panel=_IMAGES, metavar="X[,X,X]", show_default="0"),
]
Std = Annotated[
    str | None,
    typer.Option(help="Divided by after that.", rich_help_panel=_IMAGES, metavar="X[,X,X]", show_default="1"),
]
LayoutName = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="Order of the input's dimensions.",
        rich_help_panel=_IMAGES,
        show_default="by the model's shape",
    ),
]
BinLayoutName = Annotated[
    BinLayout | None,
    typer.Option(
        "--bin-layout",
        help="Order of dimensions in .bin files; they are transposed to the model's.",
        rich_help_panel=_IMAGES,
        show_default="the model's",
    ),
]
InterpolationName = Annotated[
    Interpolation | None,
    typer.Option("--interpolation", help="How to resize.", rich_help_panel=_IMAGES, show_default="linear"),
]
NormalizeWhen = Annotated[
    Normalize | None,
    typer.Option(
        "--normalize",
        help="Whether scale, mean and std come last or before resizing.",
        rich_help_panel=_IMAGES,
        show_default="after_crop",
    ),
]
ColorName = Annotated[
    Color | None, typer.Option("--color", help="Order of channels.", rich_help_panel=_IMAGES, show_default="RGB")
]


@dataclass(frozen=True)
class ImageOptions:
    """What the command line says about images; None where it says nothing."""

    image_size: ImageSize = None
    resize_short_side: ResizeShortSide = None
    crop: Crop = None
    scale: Scale = None
    mean: Mean = None
    std: Std = None
    layout: LayoutName = None
    color: ColorName = None
    interpolation: InterpolationName = None
    normalize: NormalizeWhen = None

    def over(self, base: ImagePreprocess | None) -> ImagePreprocess | None:
        """The recipe's preprocessing with these options laid over it.

        Raises:
            RecipeError: If the result is not valid.
        """
        if self == AS_CONFIGURED:
            return base
        from onnxq.recipe import ImagePreprocess

        changes: dict[str, Any] = {
            "size": _pixels("--image-size", self.image_size),
            "resize_short_side": self.resize_short_side,
            "crop": _pixels("--crop", self.crop),
            "scale": None if self.scale is None else _number("--scale", self.scale),
            "mean": _numbers("--mean", self.mean),
            "std": _numbers("--std", self.std),
            "layout": self.layout and self.layout.value,
            "color": self.color and self.color.value,
            "interpolation": self.interpolation and self.interpolation.value,
            "normalize": self.normalize and self.normalize.value,
        }
        given = {key: value for key, value in changes.items() if value is not None}
        for key, other in (("size", "resize_short_side"), ("resize_short_side", "size")):
            if key in given and other not in given:
                given[other] = None
        return (base or ImagePreprocess()).replace(**given)


AS_CONFIGURED = ImageOptions()
"""Nothing is said about images."""


def with_image_options(command: Callable[..., int]) -> Callable[..., int]:
    """A command with the options of images in place of its parameter `images`, an `ImageOptions`."""
    asked = get_type_hints(ImageOptions, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name != "images":
            parameters.append(parameter)
            continue
        for name, annotation in asked.items():
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameters.append(inspect.Parameter(name, kind, default=None, annotation=annotation))

    @functools.wraps(command)
    def reading(**given: Any) -> int:  # noqa: ANN401 - the command's own
        return command(images=ImageOptions(**{name: given.pop(name) for name in asked}), **given)

    vars(reading)["__signature__"] = inspect.Signature(parameters, return_annotation=int)
    reading.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
    return reading


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        recipe: The recipe with the options laid over it.
        amct: What a configuration of AMCT's means for the model; None where there is none.
        notes: What is worth knowing about it.
        mslite: What a configuration of MindSpore Lite's converter means; None where there is none.
        retrain: What a configuration of AMCT's for training or pruning means; None where there is none.
    """

    recipe: Recipe
    amct: AmctJob | None = None
    notes: tuple[str, ...] = ()
    mslite: MsliteJob | None = None
    retrain: RetrainJob | None = None

    def data(self, path: Path | None) -> CalibrationData | None:
        """The calibration data: those of the command line, else those that a configuration names.

        Args:
            path: What the command line says.

        Raises:
            RecipeError: If a configuration needs data and there are none.
        """
        if path is not None or self.mslite is None or self.recipe.calibration.random:
            return path
        self.mslite.require_data()
        return self.mslite.data

    @property
    def debug_dir(self) -> Path | None:
        """Folder of the debug report that a configuration asks for."""
        return None if self.mslite is None else self.mslite.debug_dir

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Tells errors about a recipe or data that nobody wrote as errors about the configuration they come from."""
        return contextlib.nullcontext() if self.mslite is None else self.mslite.explained()


@dataclass(frozen=True)
class RecipeOptions:
    """What the command line says that a recipe could say too; None where it says nothing."""

    config: Path | None = None
    target: Target | None = None
    method: Method | None = None
    batch_size: int | None = None
    samples: int | None = None
    skip: tuple[str, ...] = ()
    seed: int | None = None
    random: int | None = None
    has_data: bool = False
    images: ImageOptions = AS_CONFIGURED
    bin_layout: BinLayout | None = None

    def recipe(self) -> Recipe:
        """The recipe file, or the default recipe, with these options laid over it.

        Raises:
            RecipeError: If the file or the result is not valid.
            DataError: If data and random data are both asked for.
        """
        from onnxq.recipe import Recipe

        return self._over(Recipe() if self.config is None else Recipe.from_file(self.config))

    def wanted(self, model: Path) -> Wanted:
        """As `recipe`; it may be a configuration of AMCT's, of MindSpore Lite's converter or of PaddleSlim's as well.

        Raises:
            RecipeError: If the file or the result is not valid, or names what the model does not have.
            DataError: If data and random data are both asked for.
        """
        if self.config is None:
            return Wanted(self.recipe())
        if self.config.name.endswith(".py") or ".py:" in self.config.name:
            return self._paddle(self.config, model)
        from onnxq.dialects.mslite.params import is_mslite_config

        if is_mslite_config(self.config):
            return self._mslite(self.config)
        from onnxq.dialects.amct.job import is_amct_config, load_config
        from onnxq.dialects.amct.retrain_job import is_retrain_config, load_retrain_config

        trained = is_retrain_config(self.config)
        if not (trained or is_amct_config(self.config)):
            return Wanted(self.recipe())
        if self.method is not None:
            raise RecipeError(f"--method has no effect on {self.config}, which decides for each layer; leave it out")
        if trained:
            retraining = load_retrain_config(self.config, model)
            recipe, notes = self._batches(retraining)
            return Wanted(recipe, None, notes, retrain=retraining)
        job = load_config(self.config, model)
        recipe, notes = self._batches(job)
        return Wanted(recipe, job, notes)

    def _batches(self, job: AmctJob | RetrainJob) -> tuple[Recipe, tuple[str, ...]]:
        """The recipe of a configuration of AMCT's, with as many samples as its batches have, and its notes."""
        recipe, notes = self._over(job.recipe), job.notes
        if self.samples is not None or not self.has_data:
            return recipe, notes
        samples = job.samples(self.batch_size)
        recipe = recipe.replace(calibration=recipe.calibration.replace(samples=samples))
        return recipe, (*notes, *_told_samples(job.batch_num, samples))

    def _mslite(self, config: Path) -> Wanted:
        from onnxq.dialects.mslite.job import prepare

        job = prepare(config)
        recipe = self._over(job.require_recipe())
        given = self.has_data or self.random is not None
        job = job.without_data() if given else job.reading(recipe.calibration)
        return Wanted(recipe, None, job.notes, job)

    def _paddle(self, config: Path, model: Path) -> Wanted:
        from onnxq.dialects.paddle.convert import BASE
        from onnxq.dialects.paddle.files import load_python_config

        if self.method is not None:
            raise RecipeError(f"--method has no effect on {config}, which names observers; leave it out")
        base = BASE if self.target is None else BASE.replace(target=self.target.value)
        return Wanted(self._over(load_python_config(config).to_recipe(model, base=base)))

    def _over(self, base: Recipe) -> Recipe:
        if self.has_data and self.random is not None:
            raise DataError("--data and --random exclude each other; leave one out")
        changes: dict[str, Any] = {"calibration": self._calibration(base)}
        if self.target is not None:
            changes["target"] = self.target.value
        if self.method is not None:
            named = base.activations.method
            if named is None or named.name != self.method.value:
                changes["activations"] = base.activations.replace(method=self.method.value)
        if self.skip:
            changes["skip"] = base.skip + self.skip
        return base.replace(**changes)

    def _calibration(self, base: Recipe) -> Any:  # noqa: ANN401 - a CalibrationConfig, which is imported late
        wanted: dict[str, Any] = {
            "batch_size": self.batch_size,
            "samples": self.samples,
            "seed": self.seed,
            "random_samples": self.random,
            "random": True if self.random is not None else False if self.has_data else None,
            "preprocess": self.images.over(base.calibration.preprocess),
            "bin_layout": self.bin_layout and self.bin_layout.value,
        }
        return base.calibration.replace(**{key: value for key, value in wanted.items() if value is not None})


def _told_samples(batch_num: int, samples: int | None) -> tuple[str, ...]:
    if samples is None:
        return (f"batch_num {batch_num} takes effect with --batch-size only; all samples of --data are used",)
    if samples < _ENOUGH:
        text = f"batch_num {batch_num} times the batch size makes {samples} for calibration; AMCT advises 16 to 32"
        return (text,)
    return ()


def _number(option: str, text: str) -> float:
    """A number, or two with a slash between them."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise RecipeError(f"{option}: {text!r} is not a number") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    return tuple(_number(option, part.strip()) for part in text.strip("[]() ").split(","))


def _pixels(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"{option}: found {text!r}; give a number of pixels, or HEIGHTxWIDTH such as 224x224")
    height, width = int(parts[0]), int(parts[-1])
    return height, width
