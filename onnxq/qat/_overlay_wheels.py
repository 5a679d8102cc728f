"""The wheels of the training runtime that are known, and the interpreters they are for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from onnxq.errors import TrainingError

__all__ = ["PACKAGE", "TRAINING_PYTHON", "VERSION", "WHEELS", "Interpreter", "Wheel", "choose_interpreter", "running"]

PACKAGE = "onnxruntime-training-cpu"
VERSION = "1.19.2"
"""The last version there is."""

TRAINING_PYTHON = "ONNXQ_TRAINING_PYTHON"
"""Environment variable that names an interpreter for the worker, where no wheel is for the running one."""

_SIDE_VERSIONS = ("3.12", "3.11", "3.10")
_PROBE_SECONDS = 60
_PROBE = """
import json, platform, sys, sysconfig
free = sysconfig.get_config_var("Py_GIL_DISABLED")
print(json.dumps([sys.executable, sys.implementation.name, list(sys.version_info[:2]), sysconfig.get_platform(),
                  platform.machine(), platform.libc_ver()[0], bool(free)]))
"""


@dataclass(frozen=True)
class Wheel:
    """A file of the package registry.

    Attributes:
        tag: Of the interpreters it is for, such as ``cp311``.
        system: ``linux_x86_64``, ``macos`` or ``windows_amd64``.
        filename: Its name.
        sha256: Of its bytes.
    """

    tag: str
    system: str
    filename: str
    sha256: str

    @property
    def requirement(self) -> str:
        """A line of a requirements file that allows this file and no other."""
        return f"{PACKAGE}=={VERSION} --hash=sha256:{self.sha256}\n"


def _wheel(tag: str, system: str, sha256: str) -> Wheel:
    files = {
        "linux_x86_64": "manylinux_2_27_x86_64.manylinux_2_28_x86_64",
        "macos": "macosx_11_0_universal2",
        "windows_amd64": "win_amd64",
    }
    return Wheel(tag, system, f"{PACKAGE.replace('-', '_')}-{VERSION}-{tag}-{tag}-{files[system]}.whl", sha256)


WHEELS = (
    _wheel("cp310", "linux_x86_64", "3c62273370c6d4a459b30144353f8893f0cc8dfd02575b97deb38d2582aec21f"),
    _wheel("cp311", "linux_x86_64", "9b3cde497eb76af75ecae2eb2a4e3a8b2477da0b833315a3d5e2c63f0dc8d5d6"),
    _wheel("cp312", "linux_x86_64", "4c8d4806c5070dc6c175e1a968e45d948588edbfe590b5ef9d42d3511d80e220"),
    _wheel("cp310", "macos", "71264887c9e17e353abc7c246552baf435cf3528958220525b17594c12177001"),
    _wheel("cp311", "macos", "ca021bfb7d087ec2f9b689825d4c24cd75082c0c8eb61c7fb5b178ed1977cbdc"),
    _wheel("cp312", "macos", "29ce7b60bd9d20efc054cf6cf02608360e074ad437945985050d667874903840"),
    _wheel("cp310", "windows_amd64", "e1268cecc39af7437cd48bebed37864c4d8b6aa760ff2ef6627d1dc283822698"),
    _wheel("cp311", "windows_amd64", "e84887e098f4dff9a39926f8fe9d44bd59d0804c77b08a072d686264fea10889"),
    _wheel("cp312", "windows_amd64", "b13775b3e4820f47ef24ee36b5b820cb04890a59c07d884eed0f3e4008d5c66f"),
)


@dataclass(frozen=True)
class Interpreter:
    """A Python.

    Attributes:
        path: Of the executable.
        tag: Such as ``cp311``; as text for people where it is no plain CPython.
        system: As of `Wheel`, or a name for which there is no wheel.
    """

    path: Path
    tag: str
    system: str

    @property
    def wheel(self) -> Wheel | None:
        """The wheel that it can load."""
        return next((w for w in WHEELS if (w.tag, w.system) == (self.tag, self.system)), None)

    @property
    def is_running(self) -> bool:
        """Whether it is the interpreter of this process."""
        return self.path == Path(sys.executable)


def running() -> Interpreter:
    """The interpreter of this process."""
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    version = (sys.version_info[0], sys.version_info[1])
    tag = _tag(sys.implementation.name, version, free=free)
    system = _system(sysconfig.get_platform(), platform.machine(), platform.libc_ver()[0])
    return Interpreter(Path(sys.executable), tag, system)


def choose_interpreter(own: Interpreter | None = None) -> Interpreter:
    """The interpreter for the worker: the running one, or else one beside it that a wheel is for.

    Args:
        own: The running one, by default found out.

    Raises:
        TrainingError: If there is none; the message says what to do.
    """
    own = own or running()
    if own.wheel is not None:
        return own
    named = os.environ.get(TRAINING_PYTHON)
    if named:
        return _named(named)
    if not any(wheel.system == own.system for wheel in WHEELS):
        raise TrainingError(
            f"there is no wheel of {PACKAGE} {VERSION} for this system ({own.system}); train on Linux (x86-64, glibc), "
            "macOS or Windows (x86-64). The artifacts of 'onnxq qat create' made there run anywhere"
        )
    for candidate in _side_interpreters():
        found = _probe(candidate)
        if found is not None and found.wheel is not None:
            return found
    raise TrainingError(
        f"there is no wheel of {PACKAGE} {VERSION} for this Python ({own.tag}), and no Python "
        f"{', '.join(_SIDE_VERSIONS)} was found beside it; install one (for example 'uv python install 3.12'), or "
        f"set {TRAINING_PYTHON} to the path of one, and run 'onnxq qat setup' again"
    )


def _named(path: str) -> Interpreter:
    found = _probe(path)
    if found is None:
        raise TrainingError(f"{TRAINING_PYTHON} is {path!r}, which does not run as a Python; name its executable")
    if found.wheel is None:
        raise TrainingError(
            f"{TRAINING_PYTHON} is {path!r}, a {found.tag} on {found.system}, which no wheel of {PACKAGE} {VERSION} "
            f"is for; name a CPython {', '.join(_SIDE_VERSIONS)}"
        )
    return found


def _side_interpreters() -> Iterator[str]:
    for version in _SIDE_VERSIONS:
        if found := which(f"python{version}"):
            yield found
    uv = which("uv")
    for version in _SIDE_VERSIONS if uv else ():
        done = _quiet([str(uv), "python", "find", "--no-python-downloads", version])
        if done:
            yield done.strip()


def _probe(path: str) -> Interpreter | None:
    answer = _quiet([path, "-c", _PROBE])
    try:
        executable, name, version, system, machine, libc, free = json.loads(answer or "")
    except ValueError:
        return None
    tag = _tag(name, (version[0], version[1]), free=free)
    return Interpreter(Path(executable), tag, _system(system, machine, libc))


def _quiet(command: list[str]) -> str | None:
    """Standard output of a command that succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _tag(name: str, version: tuple[int, int], *, free: bool) -> str:
    if name != "cpython":
        return f"{name} {version[0]}.{version[1]}"
    return f"cp{version[0]}{version[1]}" + ("t" if free else "")


def _system(system: str, machine: str, libc: str) -> str:
    if system == "linux-x86_64":
        return "linux_x86_64" if libc == "glibc" else "linux x86_64 without glibc"
    if system.startswith("macosx"):
        return "macos"
    if system == "win-amd64":
        return "windows_amd64"
    return f"{system} {machine}"
