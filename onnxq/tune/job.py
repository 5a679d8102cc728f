"""One run of ``onnxq tune``: from files to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.pipeline import Progress
from onnxq.recipe import Recipe
from onnxq.report.files import write_text
from onnxq.report.page import render
from onnxq.tune.constraint import Constraint, parse_budget
from onnxq.tune.evaluation import Evaluation
from onnxq.tune.history import Trial
from onnxq.tune.page import tune_page
from onnxq.tune.trials import Objective
from onnxq.tune.tuning import Tuned, tune

if TYPE_CHECKING:
    from onnxq.calib.readers import DataLike

DEFAULT_DROP = "1%"


@dataclass(frozen=True)
class TuneJob:
    """What is to be tuned, for what, and where to.

    Attributes:
        model: The float model.
        output: The file to write; the recipe goes beside it.
        data: Calibration data.
        evaluation: Evaluation data.
        recipe: What to start with; it says how both are read.
        labels: File with the true classes.
        metric: As for `Evaluation`; None: top1 where there are labels, else agreement.
        max_drop: As for `Constraint.parse`; None: `DEFAULT_DROP` where there is no score to be reached.
        min_score: The score that must be reached.
        objective: What is to be least.
        budget: As for `parse_budget`; None for no limit.
        state: File of what was tried.
        eval_samples: Evaluate on the first so many samples.
        threads: Threads of ONNX Runtime; 0 for all cores.
        report: HTML report to write; None for none.
    """

    model: Path
    output: Path
    data: DataLike
    evaluation: Path
    recipe: Recipe
    labels: Path | None = None
    metric: str | None = None
    max_drop: str | None = None
    min_score: float | None = None
    objective: Objective = "latency"
    budget: str | None = None
    state: Path | None = None
    eval_samples: int | None = None
    threads: int = 0
    report: Path | None = None

    @property
    def constraint(self) -> Constraint:
        """What must be kept.

        Raises:
            RecipeError: If it cannot be read.
        """
        drop = DEFAULT_DROP if self.max_drop is None and self.min_score is None else self.max_drop
        return Constraint.parse(drop, self.min_score)

    @property
    def measured(self) -> Evaluation:
        """What is measured."""
        reading = self.recipe.calibration
        metric = self.metric or ("top1" if self.labels is not None else "agreement")
        return Evaluation(
            self.evaluation,
            metric,
            self.labels,
            preprocess=reading.preprocess,
            bin_layout=reading.bin_layout,
            samples=self.eval_samples,
            threads=self.threads,
        )


def recipe_path(output: Path) -> Path:
    """Where the recipe of a tuned model goes: ``model.int8.recipe.yaml`` for ``model.int8.onnx``."""
    return output.with_name(f"{output.stem}.recipe.yaml")


def run_tune(job: TuneJob, *, progress: Progress = lambda what, done, total: None) -> Tuned:
    """Tune, save and report.

    Args:
        job: What to do.
        progress: Is told how far it is.

    Raises:
        OnnxqError: If the model, data, metric or recipe cannot be used, or a file cannot be written.
    """
    constraint = job.constraint
    budget = None if job.budget is None else parse_budget(job.budget)
    tries: list[Trial] = []

    def shown(what: str, done: int, total: int | None) -> None:
        progress(f"trial {len(tries) + 1}: {what}", done, total)

    found = tune(
        job.model,
        job.data,
        job.measured,
        constraint,
        recipe=job.recipe,
        objective=job.objective,
        budget=budget,
        state=job.state,
        threads=job.threads,
        progress=shown,
        on_trial=tries.append,
    )
    progress("saving", 0, None)
    found.save(job.output)
    write_text(recipe_path(job.output), found.recipe.to_yaml(defaults=False))
    if job.report is not None:
        write_text(job.report, render(tune_page(found, str(job.model))))
    return found
