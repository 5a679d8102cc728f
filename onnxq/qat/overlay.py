"""The training runtime: installed into a folder of the user's cache, checked, found.

Its wheel holds the package ``onnxruntime`` as the stock wheel does, so the two cannot share an environment. It is
unpacked into a folder of its own, which only the worker process has on its module path.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import TrainingError
from onnxq.qat import _overlay_store as store
from onnxq.qat._overlay_store import CACHE, Overlay, cache_dir, find_overlay
from onnxq.qat._overlay_verify import verify
from onnxq.qat._overlay_wheels import PACKAGE, VERSION, WHEELS, Interpreter, Wheel, choose_interpreter

__all__ = [
    "CACHE",
    "WHEELS",
    "Installation",
    "Overlay",
    "Wheel",
    "cache_dir",
    "find_overlay",
    "install_overlay",
    "set_up",
]

Progress = Callable[[str, int, int | None], None]
_SIDE_PACKAGES = ("numpy>=1.26", "onnx>=1.20", "flatbuffers", "packaging")
_STEPS = 4
_ATTEMPTS = 100


@dataclass(frozen=True)
class Installation:
    """What `set_up` did.

    Attributes:
        overlay: The overlay.
        wheel: The file it was made of.
        installed: Whether it was installed now; False if it was there already.
        repaired: What was wrong with the one that it replaces; empty if nothing was, or there was none.
        verified_seconds: How long the worker took to start and to train one step.
    """

    overlay: Overlay
    wheel: Wheel
    installed: bool
    repaired: str
    verified_seconds: float

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "version": self.overlay.version,
            "tag": self.overlay.tag,
            "path": str(self.overlay.path),
            "python": str(self.overlay.python),
            "wheel": self.wheel.filename,
            "sha256": self.wheel.sha256,
            "installed": self.installed,
            "repaired": self.repaired,
            "verified_seconds": round(self.verified_seconds, 3),
        }


def install_overlay(
    cache: str | os.PathLike[str] | None = None, *, force: bool = False, progress: Progress | None = None
) -> Overlay:
    """Install the training runtime unless it is there and whole; see `set_up`."""
    return set_up(cache, force=force, progress=progress).overlay


def set_up(
    cache: str | os.PathLike[str] | None = None,
    *,
    wheel_file: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Installation:
    """Install the training runtime unless it is there and whole, and train one step with it.

    Nothing is written outside of the cache, and what is in it appears at once or not at all: several
    processes may do this at the same time.

    Args:
        cache: The folder of overlays; by default as of `cache_dir`.
        wheel_file: The wheel, or a folder with it, instead of the package registry.
        force: Install it anew in any case.
        progress: Told what is done, how many steps are done, and of how many.

    Raises:
        TrainingError: If there is no wheel for this system and Python, it cannot be had or is not the right one, or
            training a step does not work.
    """
    told = progress or _nobody
    interpreter = choose_interpreter()
    wheel = _wheel_of(interpreter)
    root = cache_dir(cache)
    folder = store.folder_of(root, wheel.tag)
    problem = store.damage(folder, thorough=True) if folder.exists() else ""
    python = _worker_python(interpreter, folder, told)
    overlay = Overlay(folder, python, wheel.tag)
    if folder.exists() and not (problem or force):
        told("train one step", 3, _STEPS)
        return Installation(overlay, wheel, False, "", verify(overlay))
    with _scratch(root) as scratch:
        told(f"fetch {wheel.filename}", 1, _STEPS)
        file = _download(wheel, python, scratch) if wheel_file is None else _given(wheel, Path(wheel_file))
        told("unpack it", 2, _STEPS)
        unpacked = _unpack(file, wheel, scratch / "overlay")
        told("train one step", 3, _STEPS)
        seconds = verify(Overlay(unpacked, python, wheel.tag))
        _put(unpacked, folder, replace=force or bool(problem))
    return Installation(overlay, wheel, True, problem, seconds)


def _nobody(what: str, done: int, total: int | None) -> None:
    pass


def _wheel_of(interpreter: Interpreter) -> Wheel:
    if interpreter.wheel is None:
        raise TrainingError(f"there is no wheel of {PACKAGE} {VERSION} for {interpreter.tag} on {interpreter.system}")
    return interpreter.wheel


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder in the cache, on the same file system as the overlay will be."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=".installing-", dir=root))
    except OSError as err:
        raise TrainingError(
            f"cannot write to the cache {root}: {err.strerror or err}; name another folder with --cache or ${CACHE}"
        ) from err
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# ---- the wheel ---------------------------------------------------------------------------------


def _given(wheel: Wheel, path: Path) -> Path:
    """The wheel among files that the user has."""
    file = path / wheel.filename if path.is_dir() else path
    if not file.is_file():
        raise TrainingError(f"there is no file {file}; name {wheel.filename}, or the folder that holds it")
    return file


def _download(wheel: Wheel, python: Path, scratch: Path) -> Path:
    """Let pip, or uv where pip is missing, fetch the wheel and check its hash."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(wheel.requirement, encoding="utf-8")
    options = ["download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
    options += ["--no-input", "--dest", str(scratch), "--requirement", str(requirements)]
    _run([*_pip(python), *options], f"fetch {wheel.filename}")
    found = sorted(scratch.glob("*.whl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise TrainingError(f"pip was to fetch {wheel.filename} and fetched {names}; fetch it by hand, use --wheel")
    return found[0]


def _pip(python: Path) -> list[str]:
    """How to run pip under an interpreter."""
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [str(python), "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--python", str(python), "pip"]
    raise TrainingError(
        f"neither pip nor uv can be run to fetch {PACKAGE} {VERSION}; install one ('{python} -m ensurepip'), or "
        "fetch the wheel elsewhere and run 'onnxq qat setup --wheel FILE'"
    )


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
        raise TrainingError(
            f"cannot {what}: {'; '.join(errors)}; where the package registry cannot be reached, "
            "run 'onnxq qat setup --wheel FILE' with the wheel"
        )


def _unpack(file: Path, wheel: Wheel, folder: Path) -> Path:
    found = store.sha256(file)
    if found != wheel.sha256:
        raise TrainingError(
            f"{file} is refused: its sha256 is {found}, and that of {wheel.filename} is {wheel.sha256}; "
            "fetch the file again"
        )
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    store.write_manifest(folder, wheel)
    return folder


def _put(unpacked: Path, folder: Path, *, replace: bool) -> None:
    """Move what was unpacked to its place; one that another process put there is as good."""
    problem: OSError | None = None
    for _ in range(_ATTEMPTS):
        if replace:
            # Another process may have done so, or may do so to what is put there.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(unpacked.with_name(f"old-{secrets.token_hex(4)}"))
        try:
            unpacked.rename(folder)
        except OSError as err:
            problem = err
        else:
            return
        if folder.exists() and not store.damage(folder, thorough=True):
            return
    reason = "" if problem is None else f": {problem.strerror or problem}"
    raise TrainingError(f"cannot move the training runtime to {folder}{reason}; remove that folder and try again")


# ---- another Python ----------------------------------------------------------------------------


def _worker_python(interpreter: Interpreter, folder: Path, told: Progress) -> Path:
    """The interpreter of the worker; one beside the running one gets an environment with what it needs."""
    if interpreter.is_running:
        return interpreter.path
    python = store.side_python(folder)
    if python is not None and _imports(python):
        return python
    told(f"make an environment with {interpreter.path.name}", 0, _STEPS)
    home = folder.with_name(f"{folder.name}-python-{secrets.token_hex(4)}")
    try:
        python = _make_environment(interpreter.path, home)
        if not _imports(python):
            raise TrainingError(f"an environment made with {interpreter.path} cannot import numpy and onnx")
        note = store.environment_note(folder)
        draft = home / note.name
        draft.write_text(home.name, encoding="utf-8")
        draft.replace(note)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return python


def _make_environment(base: Path, home: Path) -> Path:
    """An environment with what the worker imports, by uv or else by venv and pip."""
    what, python = f"make an environment in {home.parent}", store.python_of(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    if uv := shutil.which("uv"):
        _run([uv, "venv", "--quiet", "--seed", "--python", str(base), str(home)], what)
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *_SIDE_PACKAGES], what)
    else:
        _run([str(base), "-m", "venv", str(home)], what)
        _run([str(python), "-m", "pip", "install", "--quiet", *_SIDE_PACKAGES], what)
    return python


def _imports(python: Path) -> bool:
    line = "import numpy, onnx, flatbuffers, packaging"
    return subprocess.run([python, "-c", line], capture_output=True, check=False).returncode == 0
