"""The training worker as the main process sees it: started, asked, watched and ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import weakref
from collections import deque
from io import FileIO
from pathlib import Path
from typing import Protocol, cast

from onnxq.errors import TrainingError
from onnxq.qat.protocol import Channel, Message, encode

_SCRIPT = Path(__file__).with_name("_worker.py")
_PIPE_BYTES = 1 << 20
_TAIL_LINES = 40
_TAIL_BYTES = 1 << 14
_GRACE = 5.0


class Runtime(Protocol):
    """Where the training runtime is."""

    @property
    def path(self) -> Path:
        """The folder that goes first on the module path."""

    @property
    def python(self) -> Path:
        """The interpreter it is for."""


class WorkerProcess:
    """A worker and the pipes to it. Not for several threads at once.

    Args:
        runtime: The training runtime.
        log: Where the runtime's own messages go; by default a file that is removed at the end.
        timeout: Seconds after which an answer is given up; time in which this process is suspended does not count.

    Raises:
        TrainingError: If it does not start.
    """

    def __init__(self, runtime: Runtime, *, log: Path | None = None, timeout: float = 3600.0) -> None:
        self.log = log or _temporary_log()
        command = [os.fspath(runtime.python), os.fspath(_SCRIPT), os.fspath(runtime.path), str(os.getpid())]
        with self.log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        source, sink = cast("FileIO", self._process.stdout), cast("FileIO", self._process.stdin)
        _widen(source, sink)
        self._end = weakref.finalize(self, _end, self._process, self.log if log is None else None)
        self._watch = _Watch(self._process, self.log, timeout)
        self._channel = Channel(source, sink, self._watch)
        self.hello = self._guarded("start", None)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return not self._end.alive

    def ask(self, request: Message) -> Message:
        """Send a request and wait for its answer.

        Raises:
            TrainingError: If the worker refuses it, dies, or does not answer in time.
        """
        if self.closed:
            raise TrainingError("the training worker is closed; start another one")
        answer = self._guarded(request.kind, request)
        if answer.kind == "error":
            raise TrainingError(_told(request.kind, answer))
        return answer

    def close(self) -> None:
        """End the worker; it is asked first and killed if that takes too long."""
        if self._end.alive:
            with contextlib.suppress(BrokenPipeError, TrainingError):
                self._channel.send(Message("quit"))
                cast("FileIO", self._process.stdin).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
            self._end()

    def kill(self) -> None:
        """End the worker at once."""
        self._end()

    def _guarded(self, what: str, request: Message | None) -> Message:
        """Send and receive; whatever interrupts this leaves half a message behind, so the worker is ended."""
        parts = [] if request is None else encode(request)
        try:
            self._channel.write(parts)
            answer = self._channel.receive()
        except (EOFError, BrokenPipeError):
            answer = None
        except BaseException:
            self.kill()
            raise
        if answer is None:
            raise self._died(what)
        return answer

    def _died(self, what: str) -> TrainingError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        code = self._process.returncode
        tail = _tail(self.log)
        self.kill()
        return TrainingError(
            f"the training worker (process {self.pid}) ended during {what!r}: {_reason(code)}; "
            f"its log ends with:\n{tail}"
        )


class _Watch:
    """Looks after the worker while an answer is waited for."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
        self._process = process
        self._log = log
        self._timeout = timeout
        self._dead = False

    def __call__(self, waited: float) -> None:
        # Another process may hold the pipe open, so that its end does not come. What a dead one had written before
        # may still be in it, and is found before the next call.
        if self._dead:
            raise EOFError
        self._dead = self._process.poll() is not None
        if waited >= self._timeout:
            raise TrainingError(
                f"the training worker (process {self._process.pid}) has not answered for {waited:.0f} s and was ended; "
                f"its log ends with:\n{_tail(self._log)}"
            )


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = deque(file.read().decode(errors="replace").splitlines(), _TAIL_LINES)
        if lines:
            return "\n".join(f"  {line}" for line in lines)
    return "  (nothing)"


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="onnxq-worker-", suffix=".log")
    os.close(handle)
    return Path(name)


def _widen(*pipes: FileIO) -> None:
    """Let more fit into the pipes than the 64 KiB of most systems."""
    try:
        import fcntl

        set_size = fcntl.F_SETPIPE_SZ  # type: ignore[attr-defined,unused-ignore] # Linux, since Python 3.10
    except (ImportError, AttributeError):
        return
    for pipe in pipes:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, set_size, _PIPE_BYTES)


def _end(process: subprocess.Popen[bytes], log: Path | None) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if log is not None:
        log.unlink(missing_ok=True)


def _reason(code: int | None) -> str:
    if code is None:
        return "it closed its pipe and does not end"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", which the system also sends when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _told(what: str, answer: Message) -> str:
    kind, text = answer.fields["type"], str(answer.fields["message"]).strip()
    if kind == "TrainingError":
        return text
    # Its messages begin with the place in its source.
    reason = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", text)[-1]
    return f"{what}: the training runtime says: {reason or kind}"
