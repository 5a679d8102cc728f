"""One folder of files per input of the model: the n-th files of all folders make the n-th feed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxq.calib.arrays import load_array
from onnxq.calib.feeds import Array, Feed, InputInfo
from onnxq.calib.files import Located, Source
from onnxq.calib.image_input import ImageInput
from onnxq.calib.layouts import Layout, has_layout, layout_of
from onnxq.calib.listing import in_byte_order, kind_of
from onnxq.calib.prefetch import decode_workers, in_order
from onnxq.calib.raw import RawFormat
from onnxq.errors import DataError, nearest

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

FileKind = Literal["auto", "image", "bin"]
"""What the files of a folder are; ``auto`` goes by their endings."""


@dataclass(frozen=True)
class Folders:
    """Data for several inputs, one folder each.

    The files of a folder, without its sub-folders and without hidden files, are taken in the byte order
    of their names.

    Attributes:
        folders: The folder of each of the model's inputs.
        kind: What the files are, for all inputs or by input. ``image`` and ``bin`` take every file of the
            folder; ``auto`` those with a known ending (images, .bin, .npy), which must be of one kind.
        preprocess: How images become feeds, for all inputs or by input.
        layouts: Layout of the numbers in .bin files, for all inputs of 4 dimensions or by input; absent: as
            the model has it. Where it differs from the model's, the numbers are transposed.
        model_layouts: Layout of the model's inputs, for all of 4 dimensions or by input; absent: see
            `onnxq.calib.layouts.layout_of`.
        shapes: Shapes of inputs with free dimensions, in the model's order, for .bin files.
        samples: How many files of each folder are used; fewer are an error. None: all.
    """

    folders: Mapping[str, str | Path]
    kind: FileKind | Mapping[str, FileKind] = "auto"
    preprocess: ImagePreprocess | Mapping[str, ImagePreprocess] | None = None
    layouts: Layout | Mapping[str, Layout] | None = None
    model_layouts: Layout | Mapping[str, Layout] | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    samples: int | None = None

    def source(self, inputs: Sequence[InputInfo]) -> Source:
        """Look into the folders.

        Args:
            inputs: The model's inputs.

        Raises:
            DataError: If they do not fit the model or each other, or a setting names no input.
        """
        self._check_names(inputs)
        parts = tuple(self._part(info) for info in inputs)
        counts = {part.info.name: len(part.files) for part in parts}
        if self.samples is not None:
            for part in parts:
                if len(part.files) < self.samples:
                    raise DataError(
                        f"{part.path}: {self.samples} samples are asked for, but there are only {len(part.files)} "
                        f"{part.word}files for input {part.info.name!r}; add files or ask for fewer samples"
                    )
        elif len(set(counts.values())) > 1:
            told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise DataError(
                f"the folders hold different numbers of files: {told}; the n-th files of all folders make the n-th feed"
            )
        return _FoldersSource(parts, min(counts.values()) if self.samples is None else self.samples)

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of one input, in the order of the samples.

        Raises:
            DataError: If there are none, or several kinds.
        """
        return self._listed(name)[1][: self.samples]

    def _listed(self, name: str) -> tuple[str, tuple[Path, ...]]:
        wanted = self.kind if isinstance(self.kind, str) else self.kind.get(name, "auto")
        return _listed(Path(self.folders[name]), wanted)

    def _check_names(self, inputs: Sequence[InputInfo]) -> None:
        names = [info.name for info in inputs]
        settings = {
            "a folder": self.folders,
            "a kind": self.kind,
            "a preprocessing": self.preprocess,
            "a layout": self.layouts,
            "a model layout": self.model_layouts,
            "a shape": self.shapes,
        }
        for what, setting in settings.items():
            for name in setting if isinstance(setting, Mapping) else ():
                if name not in names:
                    hint = nearest(name, names) or f"; its inputs are {', '.join(map(repr, names))}"
                    raise DataError(f"{what} is given for {name!r}, which is not an input of the model{hint}")
        missing = [name for name in names if name not in self.folders]
        if missing:
            raise DataError(
                f"there is no folder for input{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}; "
                f"the model has {len(names)} inputs, each needs one"
            )

    def _part(self, info: InputInfo) -> _Part:
        path = Path(self.folders[info.name])
        kind, files = self._listed(info.name)
        if kind == "npy":
            return _Part(info, path, kind, files, lambda file: load_array(file, info))
        told = _layout_for(self.model_layouts, info)
        if kind == "image":
            image = ImageInput.of(path, info, self._preprocess_for(info.name), told)
            return _Part(info, path, kind, files, image.load, image.note)
        layout = _layout_for(self.layouts, info)
        raw, note = raw_format(info, layout, told, self._shape_for(info), exact=True)
        return _Part(info, path, kind, files, raw.load, note)

    def _preprocess_for(self, name: str) -> ImagePreprocess | None:
        return self.preprocess.get(name) if isinstance(self.preprocess, Mapping) else self.preprocess

    def _shape_for(self, info: InputInfo) -> tuple[int, ...] | None:
        shape = (self.shapes or {}).get(info.name)
        if shape is None:
            return None
        given = tuple(shape)
        fits = info.shape is None or (
            len(given) == len(info.shape)
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(info.shape, given, strict=True))
        )
        if not fits:
            raise DataError(f"shape {list(given)} is given for input {info.name!r}, but the model has {info}")
        return given


def raw_format(
    info: InputInfo,
    layout: Layout | None,
    told: Layout | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    exact: bool = False,
) -> tuple[RawFormat, str]:
    """How .bin files are read, and a note where they are transposed.

    Args:
        info: The input.
        layout: Layout of the files; None: as the model has it.
        told: Layout of the model's input; None decides by its shape.
        shape: Its shape, where more is known than the model says.
        exact: See `RawFormat`.
    """
    if layout is None or not has_layout(info):  # a layout for all inputs is about those of 4 dimensions
        return RawFormat(info, shape, exact=exact), ""
    model = layout_of(info, told)
    note = ""
    if model.layout != layout:
        note = (
            f"input {info.name!r}: .bin files hold {layout} and are transposed to {model.layout}, "
            f"which the model's input {info} has: {model.reason}"
        ) + ("" if model.sure else f"; say {model.layout} of files that are as the model has them")
    return RawFormat(info, shape, layout, model, exact), note


@dataclass(frozen=True)
class _Part:
    """One input and its files."""

    info: InputInfo
    path: Path
    kind: str
    files: tuple[Path, ...]
    load: Callable[[Path], Array]
    note: str = ""

    @property
    def word(self) -> str:
        return f"{self.kind} " if self.kind else ""


class _FoldersSource:
    """The n-th files of all folders, as feeds."""

    def __init__(self, parts: Sequence[_Part], count: int) -> None:
        self._parts = tuple(parts)
        self._count = count
        self._single = all(part.kind == "image" for part in parts)

    def located(self) -> Iterator[Located]:
        """Give the feeds and where they come from."""
        workers = decode_workers() if any(part.kind == "image" for part in self._parts) else 1
        return in_order(self._load, range(self._count), workers)

    def _load(self, index: int) -> Located:
        feed: Feed = {part.info.name: part.load(part.files[index]) for part in self._parts}
        return Located(", ".join(str(part.files[index]) for part in self._parts), 0, feed)

    def len_hint(self) -> int | None:
        """How many samples there are, if known."""
        return self._count if self._single else None

    def part(self, first: int, count: int) -> _FoldersSource | None:
        """Some of its files, by absolute paths; see `onnxq.calib.files.Divisible`."""
        if not self._single:
            return None
        end = min(first + count, self._count)
        parts = [replace(p, files=tuple(file.absolute() for file in p.files[first:end])) for p in self._parts]
        return _FoldersSource(parts, end - first)

    def describe(self) -> str:
        """What the data are, in a few words."""
        parts = ", ".join(f"{part.path} ({part.info.name!r}, {part.kind})" for part in self._parts)
        return (
            f"{self._count} files from each of {parts}" if len(self._parts) > 1 else f"{self._count} files from {parts}"
        )

    def remarks(self) -> tuple[str, ...]:
        """How the layouts were decided."""
        return tuple(part.note for part in self._parts if part.note)


def _layout_for(setting: Layout | Mapping[str, Layout] | None, info: InputInfo) -> Layout | None:
    """What is said about one input, or about all of 4 dimensions.

    Raises:
        DataError: If something is said about an input that does not have 4 dimensions.
    """
    if setting is None or isinstance(setting, str):
        return setting
    told = setting.get(info.name)
    return told if told is None else layout_of(info, told).layout


def _listed(path: Path, wanted: FileKind) -> tuple[str, tuple[Path, ...]]:
    """The kind of a folder's files, and the files in order."""
    if not path.is_dir():
        raise DataError(f"{path}: {'is no folder' if path.exists() else 'does not exist'}; give a folder per input")
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if wanted != "auto":
        if not files:
            raise DataError(f"{path}: holds no files")
        return wanted, in_byte_order(files)
    kinds = {file: kind for file in files if (kind := kind_of(file)) in ("image", "bin", "npy")}
    found = sorted(set(kinds.values()))
    if len(found) != 1:
        counts = ", ".join(f"{list(kinds.values()).count(kind)} {kind}" for kind in found)
        problem = f"several kinds of data files ({counts}); keep one kind" if found else "no image, .bin or .npy files"
        raise DataError(f"{path}: holds {problem}")
    return found[0], in_byte_order(list(kinds))
