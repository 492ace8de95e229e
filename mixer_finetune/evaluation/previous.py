"""The run before this one on the same images: whether what was changed made a difference."""

from __future__ import annotations

from dataclasses import replace

from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.comparison import Comparison
from mixer_finetune.evaluation.matched_runs import read_run
from mixer_finetune.evaluation.results import Results
from mixer_finetune.runs import RunFolder, runs_below

_MOST_TRIED = 20
THIS, BEFORE = "this run", "the previous run"


def against_previous(run: RunFolder, results: Results) -> Comparison | None:
    """The newest earlier run beside this one that was evaluated on the same images of the same data, and this one.

    Args:
        run: In a folder of runs (`runs/<recipe>/<date-time>`); of one that lies elsewhere nothing is beside it.
        results: Of it.

    Returns:
        Both, the previous run first; None where there is none.
    """
    if not run.is_placed or not results.metrics:
        return None
    this = replace(read_run(THIS, run), results=results)
    here = run.path.resolve()
    earlier = [each for each in runs_below(here.parent.parent) if each.in_time < RunFolder(here).in_time]
    for each in earlier[:_MOST_TRIED]:
        try:
            before = read_run(BEFORE, each)
            if _measured(before.results) != _measured(results):
                continue
            found = Comparison.of([before, this])
        except UserError:
            continue  # unfinished, damaged, or of other images
        if not found.notes:
            return found
    return None


def _measured(results: Results) -> tuple[object, ...]:
    """What two runs have to be measured on to be told apart by their answers."""
    data = results.data
    return data["source"], data.get("revision"), results.task, results.split, results.samples, results.split_samples
