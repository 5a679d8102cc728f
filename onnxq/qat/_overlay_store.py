"""Where overlays lie, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import TrainingError
from onnxq.qat._overlay_wheels import PACKAGE, VERSION, WHEELS, Interpreter, Wheel, running

__all__ = [
    "CACHE",
    "MANIFEST",
    "Overlay",
    "cache_dir",
    "damage",
    "environment_note",
    "find_overlay",
    "folder_of",
    "python_of",
    "sha256",
    "side_python",
    "write_manifest",
]

CACHE = "ONNXQ_CACHE"
"""Environment variable that names the folder of overlays."""

MANIFEST = "onnxq-overlay.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Overlay:
    """An installed training runtime.

    Attributes:
        path: The folder that goes first on the worker's module path.
        python: The interpreter of the worker.
        tag: Of the interpreter, such as ``cp311``.
        version: Of the training runtime.
    """

    path: Path
    python: Path
    tag: str
    version: str = VERSION


def cache_dir(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of overlays: the one given, or of $ONNXQ_CACHE, or in the user's cache."""
    if cache is not None:
        return Path(cache).expanduser().absolute()
    if named := os.environ.get(CACHE):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxq" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onnxq"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxq"


def folder_of(cache: Path, tag: str) -> Path:
    """The folder of one overlay."""
    return cache / f"ort-training-{VERSION}-{tag}"


def find_overlay(cache: str | os.PathLike[str] | None = None) -> Overlay:
    """The installed overlay.

    Args:
        cache: The folder of overlays; by default as of `cache_dir`.

    Raises:
        TrainingError: If there is none or it is damaged; the message says what to do.
    """
    folder = cache_dir(cache)
    own = running()
    for tag in dict.fromkeys([own.tag, *sorted({wheel.tag for wheel in WHEELS}, reverse=True)]):
        path = folder_of(folder, tag)
        python = _interpreter_of(path, own, tag)
        if python is None:
            continue
        if problem := damage(path, thorough=False):
            raise TrainingError(f"the training runtime in {path} is damaged: {problem}; run 'onnxq qat setup'")
        return Overlay(path, python, tag)
    raise TrainingError(
        f"there is no training runtime for this Python in {folder}; run 'onnxq qat setup' once, which installs "
        f"{PACKAGE} {VERSION} there"
    )


def _interpreter_of(path: Path, own: Interpreter, tag: str) -> Path | None:
    """The interpreter an overlay is run with; None where there is no overlay that can be run."""
    if not path.is_dir():
        return None
    if tag == own.tag:
        return own.path
    # One that was made for another Python has an environment of its own.
    return side_python(path) if own.wheel is None else None


def side_python(path: Path) -> Path | None:
    """The interpreter of the environment that was made for an overlay; None if there is none."""
    try:
        name = environment_note(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    python = python_of(path.parent / Path(name).name)
    return python if python.exists() else None


def environment_note(path: Path) -> Path:
    """The file that names the folder of an overlay's environment; environments themselves cannot be moved."""
    return path.with_name(f"{path.name}-python.txt")


def python_of(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def write_manifest(folder: Path, wheel: Wheel) -> None:
    """Note the size and the hash of every file of an unpacked wheel."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in paths}
    content = {"version": VERSION, "wheel": wheel.filename, "sha256": wheel.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def damage(folder: Path, *, thorough: bool) -> str:
    """What is wrong with an overlay, in words; empty if nothing is.

    Args:
        folder: The overlay.
        thorough: Compare what the files hold and not only their sizes.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        return f"its {MANIFEST} cannot be read ({type(err).__name__})"
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            # Another process may replace the overlay while this one looks: any of these may find nothing.
            if (found := path.stat().st_size) != size:
                return f"{name} has {found} bytes instead of {size}"
            if thorough and sha256(path) != digest:
                return f"{name} is not what was installed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as err:
            return f"{name} cannot be read ({err.strerror or err})"
    return ""


def sha256(path: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
