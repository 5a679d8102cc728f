"""How long the bundled zoo takes, by how many processes measure at once.

Runs take turns, so that what else the machine does hits all alike. With --quick only two models are measured.
"""

from __future__ import annotations

import time
from functools import partial

import tools

from onnxq.zoo.manifest import read_manifest
from onnxq.zoo.run import run_zoo

MANIFEST = tools.ROOT / "models" / "zoo.yaml"
JOBS = (1, 2)
FEW = ("digits_cnn_opset11", "digits_lstm_opset11")


def seconds(jobs: int, only: tuple[str, ...], threads: int) -> tools.Row:
    """One run of the zoo.

    Args:
        jobs: How many processes measure at once.
        only: The models; none for all.
        threads: Threads in all.
    """
    start = time.perf_counter()
    found = run_zoo(read_manifest(MANIFEST), jobs=jobs, only=only, threads=threads)
    row: tools.Row = {"entries": len(found.outcomes), "not measured": found.counted("failed")}
    return row | {"seconds": time.perf_counter() - start}


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all numbers of processes."""
    only = FEW if options.quick else options.only
    targets = {str(jobs): partial(seconds, jobs, only, options.threads) for jobs in JOBS}
    found = tools.alternate(targets, 1 if options.quick else options.rounds)
    first = tools.median(found[str(JOBS[0])], "seconds")
    rows: list[tools.Row] = []
    for jobs, results in found.items():
        row: tools.Row = {"jobs": jobs, "note": tools.failed(results)}
        if not row["note"]:
            total = tools.median(results, "seconds")
            row |= {
                "entries": results[0]["entries"],
                "not measured": results[0]["not measured"],
                "s": total,
                "over 1": total / first,
            }
        rows.append(row)
    notes = ["wall time of a run, with the start of its processes; latency is measured for as long whatever else runs"]
    return [tools.Table("Zoo of the bundled models", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
