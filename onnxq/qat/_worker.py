"""Starts the training worker: ``python _worker.py OVERLAY PARENT``.

The training runtime and stock onnxruntime are the same package, so the worker is a process of its own that has the
overlay first on its path. It also runs under an interpreter in which onnxq is not installed: of onnxq it sees
the modules it names, and neither what the packages import nor what else lies beside it.
"""

from __future__ import annotations

import sys


def main(overlay: str, parent: int) -> None:
    """Serve requests from standard input on standard output until either ends.

    Args:
        overlay: The folder with the training runtime.
        parent: Number of the process to serve; when it is gone, so is this one.
    """
    sys.path[0] = overlay
    from pathlib import Path
    from types import ModuleType

    here = Path(__file__).resolve().parent
    for name, folder in (("onnxq", here.parent), ("onnxq.qat", here)):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    from onnxq.qat._worker_loop import serve

    serve(parent)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
