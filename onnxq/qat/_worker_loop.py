"""The worker's main loop: pipes, log, and the end of it."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from io import FileIO
from typing import NoReturn

from onnxq.errors import OnnxqError
from onnxq.qat.protocol import Channel, Message

_LOOK_EVERY = 0.5


def serve(parent: int) -> NoReturn:
    """Answer requests until there are no more, then end the process."""
    channel, source = _open_pipes()
    faulthandler.enable(file=sys.stderr)
    # Ctrl-C reaches the whole group of processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent, source), daemon=True).start()
    status = 0
    try:
        _answer_all(channel)
    except (EOFError, BrokenPipeError):
        status = 1
    except BaseException:  # noqa: BLE001 - the traceback belongs into the log, whatever it is
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    # The libraries' own teardown is skipped: there is nothing left to save.
    os._exit(status)


def _open_pipes() -> tuple[Channel, int]:
    """Keep the pipes for messages; what libraries print goes to the log, which is standard error."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(source, os.O_BINARY)
        msvcrt.setmode(sink, os.O_BINARY)
    return Channel(FileIO(source, "rb"), FileIO(sink, "wb")), source


def _answer_all(channel: Channel) -> None:
    from onnxq.qat._worker_service import Service

    service = Service()
    channel.send(service.hello())
    while True:
        request = channel.receive()
        if request is None or request.kind == "quit":
            return
        channel.send(_answer(service, request))


def _answer(service: object, request: Message) -> Message:
    handler = getattr(service, f"do_{request.kind}", None)
    if handler is None:
        return Message("error", {"type": "TrainingError", "message": f"the worker does not know {request.kind!r}"})
    try:
        answer: Message = handler(request)
    except Exception as err:  # noqa: BLE001 - every failure is told to the parent, which raises it
        if not isinstance(err, OnnxqError):
            traceback.print_exc()
            sys.stderr.flush()
        return Message("error", {"type": type(err).__name__, "message": str(err)})
    return answer


def _end_with_parent(parent: int, source: int) -> None:
    """End the process when its parent is gone, even in the middle of a step."""
    if os.name != "posix":
        return
    poll = select.poll()
    poll.register(source, 0)
    while os.getppid() == parent and not poll.poll(1000 * _LOOK_EVERY):
        pass
    # A request to end that came before the pipe was closed is given its time.
    time.sleep(_LOOK_EVERY)
    os._exit(1)
