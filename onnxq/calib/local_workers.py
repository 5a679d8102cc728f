"""Workers of dask.distributed in processes of this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError

START = 60.0
"""Seconds that the first worker may take to appear."""


@dataclass(eq=False)
class Processes:
    """Workers that run here, and their scheduler in this process.

    Attributes:
        cluster: dask's own.
        folder: Where workers write.
        running: The workers.
    """

    cluster: Any
    folder: tempfile.TemporaryDirectory[str]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @staticmethod
    def start(count: int, threads: int) -> Processes:
        """Start a scheduler and workers.

        Args:
            count: How many workers.
            threads: Threads of each.
        """
        distributed = dask_distributed()
        cluster = distributed.LocalCluster(
            n_workers=0,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
        made = Processes(cluster, tempfile.TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True))
        # what can be imported here can be imported there; workers are no copies of this process, whose own script
        # would have to be guarded against being run again
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        command += ["--nthreads", str(threads), "--no-dashboard", "--death-timeout", str(int(START))]
        command += ["--memory-limit", "0"]  # a worker near its limit would wait for memory that nobody gives back
        for number in range(count):
            with made.log(number).open("wb") as log:
                options = ["--name", str(number), "--local-directory", made.folder.name]
                made.running.append(
                    subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=log)
                )
        return made

    def log(self, number: int) -> Path:
        """What a worker writes."""
        return Path(self.folder.name) / f"worker{number}.log"

    def dead(self) -> str:
        """The last words of the last worker if none is left; else empty."""
        if any(process.poll() is None for process in self.running):
            return ""
        lines = self.log(len(self.running) - 1).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.running[-1].returncode}"

    def close(self) -> None:
        """End the workers and the scheduler."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        self.cluster.close()
        self.folder.cleanup()


def dask_distributed() -> Any:  # noqa: ANN401 - dask has no types
    """The package, which is an extra of onnxq's.

    Raises:
        OnnxqError: If it is not installed.
    """
    try:
        import distributed
    except ImportError as err:
        raise OnnxqError("workers need dask: pip install 'onnxq[distributed]'") from err
    return distributed
