"""The command ``onnxq``."""

from __future__ import annotations


def main() -> None:
    """Run the command line; ends the process with the exit code."""
    from onnxq.cli.app import app

    app()
