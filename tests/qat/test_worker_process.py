"""The life of the worker, with a package in place of the training runtime."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import TrainingError
from onnxq.qat._worker_process import WorkerProcess
from onnxq.qat.protocol import Message

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fake:
    path: Path
    python: Path = Path(sys.executable)


@pytest.fixture
def fake(tmp_path):
    """A package onnxruntime whose `training.api` does what a test says when artifacts are opened."""
    package = tmp_path / "overlay" / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "training").mkdir()
    (package / "__init__.py").write_text("import os\n__version__ = 'fake'\nclass SessionOptions: pass\n")
    (package / "capi" / "__init__.py").touch()
    (package / "capi" / "_pybind_state.py").touch()

    def make(body="", start=""):
        with (package / "__init__.py").open("a") as file:
            file.write(start)
        (package / "training" / "api.py").write_text(f"import os, signal, sys, time\n{body}\n")
        return Fake(package.parent)

    return make


def opening():
    return Message("open", {"directory": ".", "checkpoint": "x", "threads": 1})


def gone(pid):
    """Whether a process ended, or is only waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def ends_soon(pid, seconds=10):
    stop = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < stop:
        time.sleep(0.05)
    return gone(pid)


def test_it_starts_answers_and_ends(fake):
    worker = WorkerProcess(fake())
    assert worker.hello.fields["version"] == "fake"
    assert worker.hello.fields["pid"] == worker.pid
    log = worker.log
    worker.close()
    worker.close()
    assert worker.closed
    assert gone(worker.pid)
    assert not log.exists()
    with pytest.raises(TrainingError, match="closed"):
        worker.ask(opening())


def test_what_it_sees_of_onnxq(fake, tmp_path):
    """Neither the packages of onnxq nor what lies beside the script are imported."""
    said = tmp_path / "said"
    body = f"""
import json
with open({str(said)!r}, "w") as file:
    json.dump([[name for name in sys.modules if name.startswith("onnxq")], sys.path], file)
raise RuntimeError("enough")
"""
    runtime = fake(body)
    worker = WorkerProcess(runtime)
    with pytest.raises(TrainingError, match="enough"):
        worker.ask(opening())
    names, path = json.loads(said.read_text())
    worker.close()
    own = {"protocol", "_worker_loop", "_worker_runtime", "_worker_service"}
    assert set(names) == {"onnxq", "onnxq.errors", "onnxq.qat", *(f"onnxq.qat.{name}" for name in own)}
    assert path[0] == str(runtime.path)
    assert str(ROOT / "onnxq" / "qat") not in path


def test_a_refusal_leaves_it_running(fake):
    worker = WorkerProcess(fake("raise ValueError('[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : no such thing')"))
    with pytest.raises(TrainingError, match=r"^open: the training runtime says: no such thing$"):
        worker.ask(opening())
    with pytest.raises(TrainingError, match="does not know 'dance'"):
        worker.ask(Message("dance"))
    assert not worker.closed
    worker.close()


def test_a_request_that_cannot_be_sent_leaves_it_running(fake):
    worker = WorkerProcess(fake())
    with pytest.raises(TrainingError, match="array of"):
        worker.ask(Message("open", {}, {"a": np.array(["text"])}))
    with pytest.raises(TrainingError, match="does not know"):
        worker.ask(Message("dance"))
    worker.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", ["killed by SIGSEGV", "Segmentation fault", "api.py"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["killed by SIGKILL", "memory runs out"]),
        ("print('last words', file=sys.stderr)\nos._exit(7)", ["exit code 7", "last words"]),
        ("print('to standard output', flush=True)\nos._exit(7)", ["exit code 7", "to standard output"]),
        ("raise SystemExit(3)", ["exit code 1", "SystemExit: 3"]),
    ],
)
def test_its_death_is_told_with_its_log(fake, body, words):
    worker = WorkerProcess(fake(body))
    with pytest.raises(TrainingError) as caught:
        worker.ask(opening())
    assert "'open'" in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert worker.closed


def test_death_at_the_start(fake):
    with pytest.raises(TrainingError, match=r"(?s)'start'.*ModuleNotFoundError: No module named 'no_such'"):
        WorkerProcess(fake(start="import no_such\n"))


def test_death_while_it_is_not_asked(fake):
    worker = WorkerProcess(fake())
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match="SIGKILL"):
        worker.ask(opening())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lists its pipes in /proc")
def test_death_while_another_process_holds_its_pipe(fake):
    """Then the end of the pipe does not come."""
    body = """
for name in os.listdir("/proc/self/fd"):
    os.set_inheritable(int(name), True) if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}") else None
import subprocess
print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    worker = WorkerProcess(fake(body), timeout=20)
    with pytest.raises(TrainingError, match=r"(?s)SIGKILL.*  (\d+)") as caught:
        worker.ask(opening())
    holder = int(str(caught.value).split()[-1])
    assert not gone(holder)
    os.kill(holder, signal.SIGKILL)


def test_an_answer_that_does_not_come(fake):
    worker = WorkerProcess(fake("time.sleep(60)"), timeout=2)
    with pytest.raises(TrainingError, match="has not answered for 2 s and was ended"):
        worker.ask(opening())
    assert gone(worker.pid)


def test_the_log_is_kept_where_it_is_named(fake, tmp_path):
    worker = WorkerProcess(fake("print('said')"), log=tmp_path / "log.txt")
    with pytest.raises(TrainingError):
        worker.ask(opening())
    worker.close()
    assert "said" in (tmp_path / "log.txt").read_text()


def test_forgotten_workers_end(fake):
    worker = WorkerProcess(fake())
    pid, log = worker.pid, worker.log
    del worker
    assert gone(pid)
    assert not log.exists()


PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from onnxq.qat._worker_process import WorkerProcess
from onnxq.qat.protocol import Message

class Runtime:
    path, python = Path({overlay!r}), Path(sys.executable)

worker = WorkerProcess(Runtime())
print(worker.pid, flush=True)
{wait}
"""
ASK = "worker.ask(Message('open', {'directory': '.', 'checkpoint': 'x', 'threads': 1}))"


@pytest.mark.parametrize("wait", ["time.sleep(60)", ASK], ids=["idle", "asked"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_its_parent(fake, wait, sign):
    overlay = fake("time.sleep(60)").path
    text = PARENT.format(root=str(ROOT), overlay=str(overlay), wait=wait)
    parent = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    assert not gone(pid)
    # Ctrl-C reaches the whole group.
    if sign == signal.SIGINT:
        os.killpg(parent.pid, sign)
    else:
        os.kill(parent.pid, sign)
    _, errors = parent.communicate(timeout=20)
    assert ends_soon(pid)
    assert ("KeyboardInterrupt" in errors) == (sign == signal.SIGINT)


def test_what_ctrl_c_means_is_for_the_parent_to_decide(fake):
    """It reaches the worker too; a parent that saves its work first still needs it."""
    worker = WorkerProcess(fake("time.sleep(0.3)\nraise ValueError('done')"))
    threading.Timer(0.1, os.kill, (worker.pid, signal.SIGINT)).start()
    for _ in range(2):
        with pytest.raises(TrainingError, match="done"):
            worker.ask(opening())
    assert not worker.closed
    worker.close()


def test_an_interrupt_ends_the_request_and_the_worker(fake):
    worker = WorkerProcess(fake("time.sleep(60)"))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.ask(opening())
    assert worker.closed
    assert gone(worker.pid)
