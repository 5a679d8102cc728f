"""One run of ``onnxq benchmark``: models take turns on the same feeds, then each is profiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calib.readers import Folders, Layout, as_reader
from onnxq.errors import DataError
from onnxq.modelio import load_model
from onnxq.passes._inputs import inputs_of
from onnxq.report.benchmark import CLOCK, ROUNDS, WARM_UP, Benchmark, Clock, benchmark
from onnxq.report.benchmark_feeds import Fed, Shapes, common_inputs, data_feeds, random_feeds
from onnxq.report.files import disk_bytes
from onnxq.report.profile import KernelKind, Profile, profile_model
from onnxq.runtime import version

if TYPE_CHECKING:
    from onnxq.calib.feeds import InputInfo
    from onnxq.recipe import ImagePreprocess

PROFILED = 20
"""Runs under the profiler where its times are wanted."""
_LOOKED_AT = 3
"""Runs under the profiler where only the kernels are wanted."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """How models are measured.

    Attributes:
        data: What they are fed; None for random numbers.
        shapes: Shapes of inputs by name, for random numbers.
        batch: Samples at a time; None for 1, or for what the model fixes.
        threads: Threads of ONNX Runtime; 0 for all cores.
        rounds: Turns of each model.
        profile: The times of the profiler are wanted, and not only which kernels are used.
        preprocess: How image files become feeds.
        bin_layout: Layout of the numbers in .bin files of 4 dimensions; None: as the model has it.
    """

    data: Path | Folders | None = None
    shapes: Shapes = field(default_factory=dict)
    batch: int | None = None
    threads: int = 0
    rounds: int = ROUNDS
    profile: bool = False
    preprocess: ImagePreprocess | None = None
    bin_layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One model and where its time goes.

    Attributes:
        path: Its file.
        file_bytes: Its size with its external data.
        profile: Its nodes as they were run; times are meant for reading only where they were wanted.
    """

    path: Path
    file_bytes: int
    profile: Profile

    @property
    def kernels(self) -> Mapping[KernelKind, Mapping[str, int]]:
        """How many nodes of each operator there are, by what they compute with; the most frequent first."""
        found: dict[KernelKind, Counter[str]] = {kind: Counter() for kind in KernelKind}
        for node in self.profile.nodes:
            found[node.kind][node.op_type] += 1
        return {kind: dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))) for kind, ops in found.items()}

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers of its nodes."""
        return tuple(sorted({node.provider for node in self.profile.nodes if node.provider}))

    @property
    def unfused(self) -> tuple[str, ...]:
        """Nodes that compute with floats though they are surrounded by codes: by the model's name where it is known."""
        return tuple(n.layer or n.name for n in self.profile.nodes if n.kind is KernelKind.DEQUANTIZED)

    def to_dict(self, *, profile: bool) -> dict[str, object]:
        """Content for JSON.

        Args:
            profile: With the times of the nodes.
        """
        kernels = {kind.value: dict(ops) for kind, ops in self.kernels.items()}
        content = {"path": str(self.path), "bytes": self.file_bytes, "kernels": kernels, "unfused": list(self.unfused)}
        return {
            **content,
            "providers": list(self.providers),
            "profile": self.profile.to_dict() if profile else None,
        }


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """What a benchmark found.

    Attributes:
        options: How the models were measured.
        benchmark: Their times.
        models: The models, in the same order.
        fed: What they were fed.
        runtime: Version of ONNX Runtime.
    """

    options: BenchmarkOptions
    benchmark: Benchmark
    models: tuple[ModelRun, ...]
    fed: Fed
    runtime: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing, a sentence each."""
        return (*self.fed.notes, *(_unfused_note(model) for model in self.models if model.unfused))

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        models = [model.to_dict(profile=self.options.profile) for model in self.models]
        timings = self.benchmark.to_dict()
        return {
            **timings,
            "runtime": f"onnxruntime {self.runtime}",
            "feeds": self.fed.text,
            "samples_per_inference": self.fed.samples,
            "models": [
                {**model, **timing.to_dict()} for model, timing in zip(models, self.benchmark.timings, strict=True)
            ],
            "notes": list(self.notes),
        }


def _unfused_note(model: ModelRun) -> str:
    names = model.unfused
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{model.path}: {len(names)} nodes between DequantizeLinear and QuantizeLinear compute with floats, as ONNX "
        f"Runtime has found no integer kernel for them: {shown}"
    )


def run_benchmark(
    paths: Sequence[Path],
    options: BenchmarkOptions,
    *,
    clock: Clock = CLOCK,
    progress: Progress = lambda what, done, total: None,
) -> BenchmarkReport:
    """Measure models in turn on the same feeds.

    Args:
        paths: Their files; the others are compared with the first.
        options: How they are measured.
        clock: The time.
        progress: Told how it is going.

    Raises:
        ModelError: If a model cannot be loaded.
        DataError: If the models' inputs differ, or data or shapes do not fit them.
    """
    if not paths:
        raise DataError("a benchmark needs one model at least")
    graphs = [load_model(path) for path in paths]
    titles = [str(path) for path in paths]
    inputs = common_inputs(list(zip(titles, map(inputs_of, graphs), strict=True)))
    fed = _fed(options, inputs)
    try:
        timings = benchmark(
            paths,
            fed.feeds,
            threads=options.threads,
            rounds=options.rounds,
            warm_up=WARM_UP,
            names=titles,
            samples=fed.samples,
            clock=clock,
            progress=progress,
        )
    except DataError as err:
        hint = "; random numbers of this shape will not do: give --shape, or samples with --data"
        raise DataError(f"{err}{'' if options.data else hint}") from err
    runs = PROFILED if options.profile else _LOOKED_AT
    models = []
    for number, (path, graph) in enumerate(zip(paths, graphs, strict=True)):
        progress("profiling", number, len(paths))
        feeds = fed.for_model(inputs_of(graph), str(path))
        found = profile_model(path, feeds, threads=options.threads, runs=runs)
        models.append(ModelRun(path, disk_bytes(path, graph), found))
    return BenchmarkReport(options, timings, tuple(models), fed, version())


def _fed(options: BenchmarkOptions, inputs: Sequence[InputInfo]) -> Fed:
    if options.data is None:
        return random_feeds(inputs, shapes=options.shapes, batch=options.batch)
    if options.shapes:
        raise DataError("--shape is about random numbers and has no effect on --data; leave one of them out")
    reader = as_reader(options.data, inputs, preprocess=options.preprocess, layout=options.bin_layout)
    return data_feeds(reader, inputs, options.batch)
