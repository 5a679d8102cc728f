"""Breaks the code on purpose, one formula at a time, and names the tests that notice.

    python benchmarks/mutations.py                # all of them, a few minutes
    python benchmarks/mutations.py bias pairs     # those whose name contains one of the words

The package and its tests are copied to a temporary folder; nothing in the checkout is touched. The exit
code is 1 if a mutation gets past the tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("onnxq", "tests", "models", "pyproject.toml")
_OUTCOME = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Edit:
    """One place of the source.

    Attributes:
        file: Path below the root.
        old: What stands there, exactly once.
        new: What it becomes.
    """

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        name: What is wrong.
        edits: How.
        tests: The files that should notice.
    """

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


_KERNELS, _STATS = "onnxq/algos/kernels.py", "onnxq/stats.py"
_SPREAD = "onnxq/passes/spread_channels.py"
_STATISTICS_TESTS = ("tests/test_stats.py", "tests/algos/test_kernels.py", "tests/calib/test_engine.py")

MUTATIONS = (
    Mutation(
        "BN fusion: epsilon outside the root",
        (
            Edit(
                "onnxq/passes/_affine.py",
                "scale = gamma / np.sqrt(spread)",
                'scale = gamma / (np.sqrt(variance) + float(node.attrs.get("epsilon", 1e-5)))',
            ),
        ),
        ("tests/passes/test_fuse_batchnorm.py",),
    ),
    Mutation(
        "BN fusion: the mean is not scaled",
        (Edit("onnxq/passes/_affine.py", "beta - mean * scale", "beta - mean"),),
        ("tests/passes/test_fuse_batchnorm.py",),
    ),
    Mutation(
        "bias scale: the scale of the weights is forgotten",
        (
            Edit(
                "onnxq/algos/bias_correct.py",
                "scale = np.broadcast_to(factor * scales, values.shape)",
                "scale = np.broadcast_to(factor, values.shape)",
            ),
        ),
        ("tests/algos/test_bias_equalize.py", "tests/passes/test_choose_params.py", "tests/test_pipeline.py"),
    ),
    Mutation(
        "bias scale: InsertQdq takes another activation's scale",
        (
            Edit(
                "onnxq/passes/insert_qdq.py",
                "float(self._params[plan.input_key].scale), params.scale",
                "float(next(iter(self._params.values())).scale.max()), params.scale",
            ),
        ),
        ("tests/test_pipeline.py", "tests/passes/test_insert_qdq.py"),
    ),
    Mutation(
        "zero point: rounded down",
        (
            Edit(
                "onnxq/algos/affine.py",
                "np.clip(np.rint(qmin - low_ / scale.astype(np.float64)), qmin, qmax)",
                "np.clip(np.floor(qmin - low_ / scale.astype(np.float64)), qmin, qmax)",
            ),
        ),
        ("tests/algos/test_affine.py", "tests/test_golden.py"),
    ),
    Mutation(
        "histogram: a value on an edge is counted below it, in the kernels and in the reference alike",
        (
            Edit(
                _KERNELS,
                "(np.int32(np.floor(part[i] * inverse)) + np.int32(HALF))",
                "(np.int32(np.ceil(part[i] * inverse)) - np.int32(1) + np.int32(HALF))",
            ),
            Edit(
                _KERNELS,
                "bin_ -= np.int32(x[i] < np.float32(bin_) * width)",
                "bin_ -= np.int32(x[i] <= np.float32(bin_) * width)",
            ),
            Edit(
                _STATS,
                "np.floor(np.ldexp(flat, HALF_LOG2 - exponent)).astype(np.int64) + HALF",
                "np.maximum(np.ceil(np.ldexp(flat, HALF_LOG2 - exponent)).astype(np.int64) - 1 + HALF, 0)",
            ),
        ),
        _STATISTICS_TESTS,
    ),
    Mutation(
        "histogram: the same in the kernel for large arrays only",
        (
            Edit(
                _KERNELS,
                "(np.int32(np.floor(part[i] * inverse)) + np.int32(HALF))",
                "(np.int32(np.ceil(part[i] * inverse)) - np.int32(1) + np.int32(HALF))",
            ),
        ),
        _STATISTICS_TESTS,
    ),
    Mutation(
        "histogram: the centres are lower edges",
        (
            Edit(
                _STATS,
                "(np.arange(-HALF, HALF, dtype=np.float64) + 0.5) * self.width",
                "(np.arange(-HALF, HALF, dtype=np.float64)) * self.width",
            ),
        ),
        ("tests/test_stats.py",),
    ),
    Mutation(
        "pairs: the limit leaves no room for rounding up",
        (Edit("onnxq/algos/weight/pair_sums.py", "LIMIT = 127.0", "LIMIT = 129.0"),),
        ("tests/algos/test_pair_sums.py", "tests/passes/test_choose_params.py"),
    ),
    Mutation(
        "pairs: neighbours in the order of the weight, not of the kernel",
        (
            Edit(
                "onnxq/passes/_fitting.py",
                "np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)",
                "weight.reshape(weight.shape[0], -1)",
            ),
        ),
        ("tests/passes/test_choose_params.py",),
    ),
    Mutation(
        "Relu absorption: also where somebody else reads what is in front of it",
        (Edit("onnxq/passes/_flow.py", "    if not graph.is_private(source):", "    if False:"),),
        ("tests/passes/test_select_layers.py", "tests/test_pipeline.py"),
    ),
    Mutation(
        "Relu absorption: the limits of the Clip are forgotten",
        (
            Edit(
                "onnxq/passes/_flow.py",
                "((*inner, c.node), (max(low, c.bounds[0]), min(high, c.bounds[1])))",
                "((*inner, c.node), (-math.inf, math.inf))",
            ),
        ),
        ("tests/passes/test_choose_params.py", "tests/passes/test_select_layers.py"),
    ),
    Mutation(
        "Concat: its inputs do not share a scale",
        (
            Edit(
                "onnxq/passes/_placement.py",
                'if c.kind not in ("passive", "join"):',
                'if c.kind != "passive":',
            ),
        ),
        ("tests/passes/test_choose_params.py",),
    ),
    Mutation(
        "bias correction: against predecessors that are not corrected",
        (
            Edit(
                "onnxq/passes/correct_bias.py",
                "            value += _along(found[name], value.ndim, axis)",
                "            _along(found[name], value.ndim, axis)",
            ),
        ),
        ("tests/passes/test_correct_bias.py",),
    ),
    Mutation(
        "bias correction: the sign",
        (Edit("onnxq/algos/bias_correct.py", "(expected - found)", "(found - expected)"),),
        ("tests/algos/test_bias_equalize.py", "tests/passes/test_correct_bias.py"),
    ),
    Mutation(
        "channel factors: the bias keeps its old scale",
        (Edit(_SPREAD, "write_bias(graph, first, first.bias * factors", "write_bias(graph, first, first.bias"),),
        ("tests/passes/test_spread_channels.py",),
    ),
    Mutation(
        "channel factors: not taken out of the depthwise layer",
        (Edit(_SPREAD, "np.repeat(1.0 / factors,", "np.repeat(np.ones_like(factors),"),),
        ("tests/passes/test_spread_channels.py",),
    ),
    Mutation(
        "segments: a tensor is dropped one piece too early",
        (
            Edit(
                "onnxq/calib/segments.py",
                "return self._last_use.get(name, -1) > self._position",
                "return self._last_use.get(name, -1) > self._position + 1",
            ),
        ),
        ("tests/calib/test_segments.py",),
    ),
    Mutation(
        "DMQ: a channel without weights gets the largest activation",
        (Edit("onnxq/algos/balance.py", "act[no_weight] / act_outlier", "act[no_weight] / act.max()"),),
        ("tests/algos/test_balance.py",),
    ),
    Mutation(
        "DMQ: the strength is the weight's",
        (
            Edit(
                "onnxq/algos/balance.py",
                "act[both] ** strength / weight[both] ** (1 - strength)",
                "act[both] ** (1 - strength) / weight[both] ** strength",
            ),
        ),
        ("tests/algos/test_balance.py",),
    ),
    Mutation(
        "DMQ: each layer of a shared tensor has a factor of its own",
        (
            Edit(
                "onnxq/passes/balance_dmq.py",
                "input_absmax(self._graph, layer.linear) for layer in group]",
                "input_absmax(self._graph, layer.linear) for layer in group[:1]]",
            ),
        ),
        ("tests/passes/test_balance_dmq.py",),
    ),
    Mutation(
        "DMQ: other readers of the tensor are overlooked",
        (Edit("onnxq/passes/balance_dmq.py", "    if others:", "    if others and not names:"),),
        ("tests/passes/test_balance_dmq.py",),
    ),
    Mutation(
        "DMQ: what is shared on the way is divided",
        (Edit("onnxq/passes/_fold.py", "return why_shared(self.graph, tensor) or self.divide", "return self.divide"),),
        ("tests/passes/test_balance_dmq.py",),
    ),
    Mutation(
        "DMQ: a fold that fails leaves its changes behind",
        (
            Edit(
                "onnxq/passes/_fold.py",
                "del self.fold.edits[edits:], self.fold.tensors[tensors:]",
                "del edits, tensors",
            ),
        ),
        ("tests/passes/test_balance_dmq.py",),
    ),
    Mutation(
        "DMQ: weights in front are changed although a record carries their numbers",
        (Edit("onnxq/passes/balance_dmq.py", 'if ctx.target.insertion == "qdq":', "if ctx.target:"),),
        ("tests/passes/test_balance_dmq.py",),
    ),
    Mutation(
        "NUQ: the border between two codes is a whole number",
        (
            Edit(
                "onnxq/algos/weight/nuq.py",
                "np.broadcast_to(left + right + 1,",
                "np.broadcast_to((left + right) // 2 * 2 + 1,",
            ),
        ),
        ("tests/algos/test_nuq.py",),
    ),
    Mutation(
        "NUQ: all channels count alike",
        (Edit("onnxq/algos/weight/nuq.py", "np.square(scale.astype(np.float64))", "np.ones_like(scale, np.float64)"),),
        ("tests/algos/test_nuq.py",),
    ),
    Mutation(
        "IFMR: a symmetric end is wider by rounding",
        (Edit("onnxq/algos/activation/ifmr.py", "* (half - 1) if below else reach", "* (half - 1)"),),
        ("tests/algos/test_amct_references.py",),
    ),
    Mutation(
        "HFMG: of equal sides the left one shrinks",
        (
            Edit(
                "onnxq/algos/activation/_kernels.py",
                "if next_left - left > right - next_right:",
                "if next_left - left >= right - next_right:",
            ),
        ),
        ("tests/algos/test_amct_references.py", "tests/algos/activation/test_hfmg.py"),
    ),
)


def run_tests(folder: Path, files: Iterable[str]) -> tuple[set[str], str]:
    """The tests that fail, and what pytest said."""
    existing = [name for name in files if (folder / name).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *existing]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    failed = set(_OUTCOME.findall(done.stdout))
    if done.returncode not in (0, 1) and not failed:
        failed = {f"(pytest stopped with code {done.returncode})"}
    return failed, done.stdout + done.stderr


def mutate(folder: Path, mutation: Mutation) -> dict[Path, str]:
    """Write the mistake into the copy; returns what stood there, by file."""
    originals: dict[Path, str] = {}
    for edit in mutation.edits:
        path = folder / edit.file
        text = path.read_text(encoding="utf-8")
        originals.setdefault(path, text)
        if edit.old not in text:
            raise SystemExit(f"{mutation.name}: {edit.file} no longer has {edit.old!r}; adapt this script")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    return originals


def short(failed: Iterable[str]) -> list[str]:
    """Names of tests without parameters, with how often each failed."""
    counts: dict[str, int] = {}
    for name in failed:
        plain = name.split("[")[0]
        counts[plain] = counts.get(plain, 0) + 1
    return [name if n == 1 else f"{name} ({n} times)" for name, n in sorted(counts.items())]


def main(words: Sequence[str]) -> int:
    """Run the mutations whose name contains one of the words; all of them without words."""
    chosen = [m for m in MUTATIONS if not words or any(w.lower() in m.name.lower() for w in words)]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="onnxq-mutations-") as scratch:
        folder = Path(scratch)
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, folder / name)
        files = sorted({test for m in chosen for test in m.tests})
        broken, output = run_tests(folder, files)
        print(f"unchanged: {len(broken)} tests fail" + "".join(f"\n    {name}" for name in short(broken)))
        if any(name.startswith("(") for name in broken):
            print(output)
            return 2
        for mutation in chosen:
            originals = mutate(folder, mutation)
            failed = run_tests(folder, mutation.tests)[0] - broken
            for path, text in originals.items():
                path.write_text(text, encoding="utf-8")
            print(f"{'caught  ' if failed else 'SURVIVED'} {mutation.name}: {len(failed)} tests fail")
            print("".join(f"    {name}\n" for name in short(failed)), end="", flush=True)
            if not failed:
                survivors.append(mutation.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
