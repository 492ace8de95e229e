"""sweep: options chosen on the dev split, and what was chosen measured on the test split once.

Each trial is a `fit` in a process and a run folder of its own, whose results are of the dev split. So a sweep that is
killed goes on where it was, and several processes, or machines that share the folder, divide the trials: each trial is
locked by whoever computes it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from mixer_finetune.engine.arguments import take_apart
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.parser import configure
from mixer_finetune.engine.parts import build_data
from mixer_finetune.errors import Interrupted, UserError
from mixer_finetune.evaluation.results import Results
from mixer_finetune.files import write_text
from mixer_finetune.randomness import SWEEP, uniform
from mixer_finetune.runs import RunFolder, runs_below

log = logging.getLogger(__name__)

MOST_TRIALS = 1000
# What the sweep sets itself in each trial.
_ITS_OWN = ("output_dir", "name", "evaluate_on", "push")


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        arguments: Of every trial, as typed behind `fit`.
        options: Names of the options that vary.
        points: Their values, by trial, each as typed.
        repeats: Options that differ between the repetitions of a trial: seeds, or folds.
    """

    arguments: list[str]
    options: list[str]
    points: list[list[str]]
    repeats: list[list[str]]


@dataclass
class Trial:
    """One setting of the options.

    Attributes:
        number: From 0.
        values: Of the options.
        dev: Metric of each repetition, on its dev split.
        failed: Why there is none; empty where there is.
        runs: Their folders.
    """

    number: int
    values: list[str]
    dev: list[float] = field(default_factory=list)
    failed: str = ""
    runs: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over the repetitions; minus infinity where it failed."""
        return mean(self.dev) if self.dev and not self.failed else -math.inf


@dataclass
class Outcome:
    """What came out.

    Attributes:
        trials: All of them.
        metric: Its name.
        best: Number of the trial of the highest mean.
        as_good: Numbers of others that are within one standard error of it.
        split: What it was chosen on.
        final: Folder of the run that was trained with the best options and measured; None where none was asked for.
        results: Of that run: split, metric, interval, images.
        note: What the final run was trained on.
    """

    trials: list[Trial]
    metric: str
    best: int
    as_good: list[int]
    split: str
    final: str | None = None
    results: dict[str, Any] | None = None
    note: str = ""


def planned(
    arguments: Sequence[str],
    vary: Sequence[tuple[str, list[str]]],
    trials: int | None = None,
    seeds: int = 1,
    folds: int | None = None,
) -> Sweep:
    """Lay a sweep out.

    Args:
        arguments: As typed behind `fit`.
        vary: Options, each with the values to try.
        trials: Take so many at random of all combinations.
        seeds: Repeat each with so many seeds.
        folds: Repeat each on so many folds of the training images (in place of seeds).

    Raises:
        UserError: Nothing varies, too much does, or what is asked for contradicts itself.
    """
    names = [name for name, _ in vary]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} varies twice; give its values in one list")
    taken = take_apart(arguments)
    for name in (*names, *_ITS_OWN, *(("data.fold", "data.folds") if folds else ())):
        if taken.sets(name):
            raise UserError(f"--{name} is what the sweep sets itself; leave it out")
    if folds and seeds > 1:
        raise UserError(
            "a trial is repeated with several seeds or on several folds, not both", option="seeds", choices="1"
        )
    points = [list(values) for values in itertools.product(*(values for _, values in vary))]
    base = configure(arguments).options.seed_everything
    if trials is not None and trials < len(points):
        order = np.argsort(uniform(base, SWEEP, 0, np.arange(len(points)), 1)[:, 0], kind="stable")
        points = [points[i] for i in sorted(order[:trials].tolist())]
    repeats = [["--data.folds", str(folds), "--data.fold", str(i)] for i in range(folds or 0)]
    repeats = repeats or [["--seed_everything", str(base + i)] for i in range(seeds)]
    if len(points) * len(repeats) > MOST_TRIALS:
        problem = f"these are {len(points) * len(repeats):,} runs, more than {MOST_TRIALS:,}"
        raise UserError(problem, advice="give fewer values, or {trials}")
    if len(points) < 2:
        raise UserError("nothing varies", advice="give {vary} an option and several values, as model.lr=0.01,0.03")
    return Sweep(list(arguments), names, points, repeats)


def sweep(plan: Sweep, folder: Path, final: bool = True) -> Outcome:
    """Compute what is missing of a sweep.

    Args:
        plan: What is tried.
        folder: Of the sweep; one that holds the same sweep already is gone on with.
        final: Whether to train and measure with the best options at the end.

    Raises:
        UserError: The folder holds another sweep, no trial succeeded, or their results are not of a dev split.
        Interrupted: By a signal.
    """
    _begin(plan, folder)
    trials = [Trial(i, values) for i, values in enumerate(plan.points)]
    try:
        with interruptible():
            _compute(plan, folder, trials)
            outcome = _chosen(plan, folder, trials)
            _write(plan, outcome, folder)
            if final:
                _measure_best(plan, outcome, folder)
                _write(plan, outcome, folder)
    except Interrupted as stop:
        stop.advice = f"go on with the same command and --output {folder}"
        raise
    return outcome


def _chosen(plan: Sweep, folder: Path, trials: list[Trial]) -> Outcome:
    measured = [each for trial in trials for each in _read(folder, trial, plan)]
    if not measured:
        raise UserError(f"no trial succeeded; the first says: {trials[0].failed}")
    if others := {each.role for each in measured} - {"val"}:
        raise UserError(f"a trial was measured on the {others.pop()} split, and not on the dev split")
    best = max(trials, key=lambda trial: trial.mean)
    return Outcome(trials, measured[0].monitor, best.number, _as_good(trials, best, measured), str(measured[0].split))


def _begin(plan: Sweep, folder: Path) -> None:
    file = folder / "plan.json"
    content = json.dumps(asdict(plan), indent=2, ensure_ascii=False) + "\n"
    if file.is_file():
        if file.read_text(encoding="utf-8") != content:
            raise UserError(f"{folder} holds another sweep", option="output", choices="another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", option="output", choices="another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, content)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror})", option="output") from error


def _compute(plan: Sweep, folder: Path, trials: list[Trial]) -> None:
    """All runs that are missing, but for those that another process computes, for which it waits at the end."""
    wanted = [(trial, i) for trial in trials for i in range(len(plan.repeats))]
    for patiently in (False, True):
        for trial, i in wanted:
            name = _name(trial, i)
            options = [part for pair in zip(plan.options, trial.values, strict=True) for part in _typed(*pair)]
            line = [*plan.arguments, *options, *plan.repeats[i], "--evaluate_on", "val"]
            _run(line, folder / "trials", name, patiently)


def _name(trial: Trial, repeat: int) -> str:
    return f"{trial.number:03}-{repeat}"


def _typed(option: str, value: str) -> list[str]:
    return [f"--{option}={value}"]


def _run(arguments: list[str], folder: Path, name: str, patiently: bool) -> None:
    """A run, unless it is there or another process is at it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"{name}.lock", timeout=-1 if patiently else 0):
            run = _existing(folder / name)
            failure = folder / f"{name}.failed"
            if failure.is_file() or (run is not None and run.report.is_file()):
                return
            line = ["--resume", str(run)] if run is not None else [*arguments, "--output_dir", str(folder)]
            line += [] if run is not None else ["--name", name]
            log.info(f"run        {name}: {' '.join(arguments)}")
            status, said = _fit(line, folder / f"{name}.log")
            if status == 2:  # a mistake, or a loss that is no number any more
                write_text(failure, said.removeprefix("error: ") + "\n")
                log.info(f"failed     {name}: {said.removeprefix('error: ')} (remove {failure} to have it tried again)")
            elif status:
                problem = f"run {name} ended with status {status}: {said}"
                raise UserError(problem, advice=f"see {folder / f'{name}.log'}; the same command goes on")
    except Timeout:
        log.info(f"run        {name} is computed by another process")


def _fit(arguments: list[str], output: Path) -> tuple[int, str]:
    """A `fit` in a process of its own: its status, and the last line of its errors."""
    with open(output, "ab") as file:
        command = [sys.executable, "-m", "mixer_finetune", "fit", *arguments]
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
        try:
            _, errors = child.communicate()
        except BaseException:
            child.terminate()  # it writes a checkpoint, and goes on from there when it is resumed
            child.communicate()
            raise
    said = errors.decode(errors="replace").strip().splitlines()
    return child.returncode, said[-1] if said else "it says nothing"


def _existing(folder: Path) -> RunFolder | None:
    """A run that was begun in a folder, and can be gone on with."""
    found = [run for run in runs_below(folder) if run.checkpoints.is_dir()]
    return found[-1] if found else None


def _read(folder: Path, trial: Trial, plan: Sweep) -> list[Results]:
    """The results of a trial's repetitions, which are noted in it."""
    found = []
    for i in range(len(plan.repeats)):
        place = folder / "trials" / _name(trial, i)
        failure = place.with_suffix(".failed")
        if failure.is_file():
            trial.failed = failure.read_text(encoding="utf-8").strip()
            return []
        run = _existing(place)
        assert run is not None, place
        results = Results.read(run)
        trial.dev.append(results.metrics[results.monitor])
        trial.runs.append(str(run))
        found.append(results)
    return found


def _as_good(trials: list[Trial], best: Trial, measured: Sequence[Results]) -> list[int]:
    """Trials whose mean is within one standard error of the best one's: over its repetitions, else of a proportion."""
    if len(best.dev) > 1:
        error = stdev(best.dev) / math.sqrt(len(best.dev))
    else:
        error = math.sqrt(max(best.mean * (1 - best.mean), 0.0) / max(measured[0].samples, 1))
    return [each.number for each in trials if each is not best and each.mean >= best.mean - error]


def _measure_best(plan: Sweep, outcome: Outcome, folder: Path) -> None:
    """Train with the best options, on the dev images too where nothing needs them any more, and measure that."""
    best = outcome.trials[outcome.best]
    options = [part for pair in zip(plan.options, best.values, strict=True) for part in _typed(*pair)]
    run = RunFolder.open(best.runs[0])
    config = run.read_config()
    whole = configure([*plan.arguments, *options, "--data.val_fraction", "0"])
    carved = "val" not in getattr(build_data(whole), "splits", {"val": None})
    watched = config.get("weights", "last") != "last" or config.get("early_stopping")
    averaged = (config.get("model") or {}).get("ema_decay")
    seed = ["--seed_everything", str(config.get("seed_everything", 0))]
    if carved and not watched and not averaged:
        outcome.note, more = "trained on train and dev images", ["--data.val_fraction", "0"]
    else:
        outcome.note, more = "trained on the training images alone, as the trials were", []
    _run([*plan.arguments, *options, *seed, *more], folder, "final", patiently=True)
    if (failure := folder / "final.failed").is_file():
        raise UserError(f"the best options could not be trained again: {failure.read_text(encoding='utf-8').strip()}")
    final = _existing(folder / "final")
    assert final is not None
    results = Results.read(final)
    outcome.final = str(final)
    if results.metrics:
        outcome.results = {
            "split": results.split,
            "role": results.role,
            "metric": results.monitor,
            "value": results.metrics[results.monitor],
            "interval": results.intervals.get(results.monitor),
            "images": results.samples,
        }


def _write(plan: Sweep, outcome: Outcome, folder: Path) -> None:
    content = {"options": plan.options, "repeats": plan.repeats, **asdict(outcome)}
    write_text(folder / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
