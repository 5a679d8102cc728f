"""ONNX Runtime, and the only module that imports it: sessions, what they were optimized to, their errors."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.calib.feeds import InputInfo
from onnxq.errors import DataError, ModelError

if TYPE_CHECKING:
    from onnxq.graph import GraphModel

Model = onnx.ModelProto | bytes | str | Path
"""What a session can be made of: a model, its bytes, or the path of its file."""

INLINE_LIMIT = 1 << 27
"""Bytes of weights up to which a graph is handed over in memory, which takes three copies; bigger ones go by a file."""

_LARGEST_MESSAGE = (1 << 31) - (1 << 26)

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_RUNTIME_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
                 "NotImplemented", "RuntimeException", "EPFail", "ModelLoadCanceled", "EngineError")
    if hasattr(ort.capi.onnxruntime_pybind11_state, name)
)  # fmt: skip


def version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def thread_count(threads: int) -> int:
    """`threads`, or as many as this process may use where it is 0."""
    if threads > 0:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """A model ready to run.

    Calls of `run` from several threads do not disturb each other.

    Args:
        session: ONNX Runtime's own.
        source: What the model is called in messages.
        folder: A folder that must live as long as the session, and no longer.
    """

    def __init__(
        self, session: ort.InferenceSession, source: str, folder: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._session = session
        self._source = source
        self.output_names: tuple[str, ...] = tuple(o.name for o in session.get_outputs())
        if folder is not None:
            weakref.finalize(self, folder.cleanup)

    @property
    def inputs(self) -> tuple[InputInfo, ...]:
        """What the model must be fed.

        Raises:
            ModelError: If an input is a sequence, a map or of a type numpy lacks.
        """
        return tuple(_input_info(i, self._source) for i in self._session.get_inputs())

    def run(self, names: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Run the model.

        Args:
            names: Outputs wanted; None for all.
            feed: Arrays by input name.

        Returns:
            One array per name; a list where the output is a sequence.

        Raises:
            DataError: If ONNX Runtime refuses the feed or fails on it.
        """
        try:
            return cast("list[Any]", self._session.run(None if names is None else list(names), dict(feed)))
        except _RUNTIME_ERRORS as err:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in feed.items())
            raise DataError(f"{self._source}: ONNX Runtime failed on this feed ({shapes}): {_first_line(err)}") from err
        except (ValueError, RuntimeError) as err:  # a missing input, an unknown output, a type Python cannot feed
            raise DataError(f"{self._source}: {_first_line(err)}") from err

    def end_profiling(self) -> str:
        """Stop the profiler; the path of what it wrote."""
        return str(self._session.end_profiling())


def make_session(
    model: Model | GraphModel,
    *,
    threads: int = 0,
    optimize: bool = True,
    source: str = "the model",
    outputs: Sequence[str] | None = None,
    extra: Sequence[onnx.NodeProto] = (),
    fed: Sequence[onnx.ValueInfoProto] = (),
) -> Session:
    """Make a session on the CPU.

    Args:
        model: A model, its bytes, its path, or a graph.
        threads: Threads of one call of `run`; 0 for all cores.
        optimize: With all graph optimizations, or with none: then every node runs as it is written.
        source: What the model is called in messages.
        outputs: Tensors to give instead of the model's outputs; what they do not need is not run.
        extra: Nodes to run as well, behind the model's own; `outputs` must name what they give.
        fed: What these nodes are fed besides; `outputs` must be given.

    Raises:
        ModelError: If ONNX Runtime cannot load it.
    """
    levels = ort.GraphOptimizationLevel
    options = _options(threads, levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL)
    content, folder = _content(model, outputs, extra, fed)
    return Session(_load(content, options, source, folder), source, folder)


def optimized(model: Model | GraphModel, *, threads: int = 1) -> onnx.ModelProto:
    """The model as ONNX Runtime will execute it, after all its optimizations.

    Raises:
        ModelError: If ONNX Runtime cannot load it.
    """
    options = _options(threads, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    content, folder = _content(model)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        _load(content, options, "the model", folder)
        result = onnx.load(path)
    if folder is not None:
        folder.cleanup()
    return result


def serialized(graph: GraphModel, outputs: Sequence[str] | None, extra: Sequence[onnx.NodeProto] = ()) -> bytes:
    """What `make_session` makes a session of elsewhere.

    Args:
        graph: The model.
        outputs: As for `make_session`.
        extra: Likewise.

    Raises:
        ModelError: If it is larger than a message of protobuf can be.
    """
    if graph.weight_bytes > _LARGEST_MESSAGE:
        raise ModelError(
            f"the model has {graph.weight_bytes / 2**30:.1f} GiB of weights; above 2 GiB it cannot be sent to workers: "
            "calibrate without them"
        )
    return bytes(_with_outputs(graph.to_proto(), outputs, extra, own=True).SerializeToString())


@dataclass(frozen=True, slots=True)
class Trace:
    """What ONNX Runtime's profiler wrote.

    Attributes:
        events: Its events in the order of the file; times in microseconds.
        optimized: The graph that was run; weights may be missing.
        warm_up: Runs at the beginning that do not count.
    """

    events: tuple[Mapping[str, Any], ...]
    optimized: onnx.ModelProto
    warm_up: int


def trace(
    model: Model | GraphModel,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    threads: int = 0,
    runs: int = 20,
    warm_up: int = 3,
    source: str = "the model",
) -> Trace:
    """Run a model with all optimizations under ONNX Runtime's profiler.

    Args:
        model: A model, its bytes, its path, or a graph.
        feeds: Taken in turn, one for each run.
        threads: Threads of one run; 0 for all cores.
        runs: How often.
        warm_up: How often before that.
        source: What the model is called in messages.

    Raises:
        ModelError: If ONNX Runtime cannot load it.
        DataError: If ONNX Runtime refuses a feed, or there is none.
    """
    if not feeds:
        raise DataError(f"{source}: there is not a single feed to run")
    options = _options(threads, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    content, folder = _content(model)
    with tempfile.TemporaryDirectory(prefix="onnxq-") as scratch:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        for key, value in (("file_name", "optimized.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        session = Session(_load(content, options, source, folder), source, folder)
        try:
            for number in range(warm_up + runs):
                session.run(None, feeds[number % len(feeds)])
        finally:
            written = Path(session.end_profiling())
        events = json.loads(written.read_text(encoding="utf-8"))
        executed = onnx.load(str(Path(scratch) / "optimized.onnx"), load_external_data=False)
    return Trace(tuple(events), executed, warm_up)


def _options(threads: int, level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = thread_count(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # failures are raised, and the rest is not for the user of onnxq
    return options


def _load(
    content: str | bytes,
    options: ort.SessionOptions,
    source: str,
    folder: tempfile.TemporaryDirectory[str] | None = None,
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _RUNTIME_ERRORS as err:
        if folder is not None:
            folder.cleanup()
        raise ModelError(f"{source}: ONNX Runtime {version()} cannot load it: {_first_line(err)}") from err


def _content(
    model: Model | GraphModel,
    outputs: Sequence[str] | None = None,
    extra: Sequence[onnx.NodeProto] = (),
    fed: Sequence[onnx.ValueInfoProto] = (),
) -> tuple[str | bytes, tempfile.TemporaryDirectory[str] | None]:
    """What ONNX Runtime can load, and the folder it needs for that."""
    if isinstance(model, bytes) and outputs is None:
        return model, None
    if isinstance(model, (str, Path)) and outputs is None:
        return str(model), None
    if isinstance(model, onnx.ModelProto):
        return _with_outputs(model, outputs, extra, fed).SerializeToString(), None
    from onnxq.graph import GraphModel
    from onnxq.modelio import load_model, save_model

    if isinstance(model, bytes):
        return _with_outputs(onnx.ModelProto.FromString(model), outputs, extra, fed).SerializeToString(), None
    graph = model if isinstance(model, GraphModel) else load_model(model)
    if graph.weight_bytes <= INLINE_LIMIT:
        return _with_outputs(graph.to_proto(), outputs, extra, fed, own=True).SerializeToString(), None
    folder = tempfile.TemporaryDirectory(prefix="onnxq-")
    path = Path(folder.name) / "model.onnx"
    save_model(graph, path, external_data=True)
    if outputs is not None:
        skeleton = _with_outputs(onnx.load(path, load_external_data=False), outputs, extra, fed, own=True)
        path.write_bytes(skeleton.SerializeToString())
    return str(path), folder


def _with_outputs(
    model: onnx.ModelProto,
    outputs: Sequence[str] | None,
    extra: Sequence[onnx.NodeProto] = (),
    fed: Sequence[onnx.ValueInfoProto] = (),
    *,
    own: bool = False,
) -> onnx.ModelProto:
    """The model with other outputs and only the nodes they need; ONNX Runtime finds their types by itself."""
    if outputs is None:
        return model
    changed = model if own else onnx.ModelProto()
    if not own:
        changed.CopyFrom(model)
    changed.graph.node.extend(extra)
    changed.graph.input.extend(fed)
    imported = {entry.domain for entry in changed.opset_import}
    for domain in sorted({node.domain for node in extra} - imported - {""}):
        changed.opset_import.add(domain=domain, version=1)
    known = {o.name: o for o in model.graph.output}
    wanted = [known.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    del changed.graph.output[:]
    changed.graph.output.extend(wanted)
    needed = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(changed.graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed |= _reads(node)
    if len(kept) < len(changed.graph.node):
        del changed.graph.node[:]
        changed.graph.node.extend(reversed(kept))
    return changed


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, and those inside its bodies."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names |= {o.name for o in body.output}.union(*map(_reads, body.node))
    return names


def _input_info(node: Any, source: str) -> InputInfo:  # noqa: ANN401 - onnxruntime has no types
    if node.type not in _DTYPES:
        raise ModelError(f"{source}: input {node.name!r} is a {node.type}; onnxq feeds plain tensors only")
    return InputInfo(node.name, _DTYPES[node.type], tuple(node.shape))


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:500]
