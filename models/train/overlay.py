# SPDX-License-Identifier: Apache-2.0
"""Keeps onnxruntime-training in a directory of its own, out of the environment's packages.

The training wheel and stock onnxruntime install the same package, so they cannot share an
environment. A child process puts the directory first on its module path instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINING_VERSION = "1.19.2"
REQUIREMENTS = Path(__file__).with_name("requirements-training.txt")
SUPPORTED_PYTHONS = ((3, 10), (3, 12))


def cache_dir() -> Path:
    """The user's cache directory for the training package."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "onnxq"


def ensure_overlay() -> Path:
    """Install the pinned training package into the cache, once.

    Returns:
        The directory to put in front of the module path of the training process.

    Raises:
        RuntimeError: If no wheel is pinned for this Python or the installation fails.
    """
    version = sys.version_info[:2]
    lowest, highest = SUPPORTED_PYTHONS
    if not lowest <= version <= highest:
        raise RuntimeError(
            f"onnxruntime-training {TRAINING_VERSION} is not pinned for Python "
            f"{version[0]}.{version[1]}; use 3.10 to 3.12"
        )
    tag = f"cp{version[0]}{version[1]}"
    target = cache_dir() / f"onnxruntime-training-{TRAINING_VERSION}-{tag}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _install(staging)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _install(directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--target", str(directory)]
    command += ["--requirement", str(REQUIREMENTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"cannot install onnxruntime-training {TRAINING_VERSION}:\n{result.stderr.strip()}")
