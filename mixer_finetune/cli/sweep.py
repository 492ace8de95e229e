"""`mixer-finetune sweep`: options that vary, beside those of `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_finetune.cli.command import Command
from mixer_finetune.cli.mixed import apart
from mixer_finetune.cli.tables import print_table
from mixer_finetune.errors import UserError
from mixer_finetune.texts import terminal_line

if TYPE_CHECKING:
    from mixer_finetune.engine.sweep import Outcome, Sweep

USAGE = "sweep --vary OPTION=VALUE,VALUE,... [--vary ...] [options of fit] [options]"


def options(
    *,
    vary: list[str] | None = None,
    trials: int | None = None,
    seeds: int = 1,
    folds: int | None = None,
    final: bool = True,
    output: str | None = None,
) -> dict[str, Any]:
    """Try values of options, choose on the dev split, and test what was chosen once.

    Each trial is a fit of its own whose results are of the dev split. The best options then train a last run, on the
    dev images too where those were held out of train, which alone sees the test split. The same command with the same
    --output goes on where an earlier one stopped; several at once, on machines that share the folder, divide the
    trials. All other options are those of fit.

    Args:
        vary: An option of fit and its values, as model.lr=0.01,0.03,0.1; may be given several times: every combination
            is tried.
        trials: So many of the combinations, drawn by the seed, in place of all.
        seeds: Repeat each trial with so many seeds, and choose by the mean.
        folds: Repeat each trial on so many folds of the training images, and choose by the mean.
        final: Train and test with the best options at the end.
        output: Folder of the sweep; sweeps/<date-time> when not given.
    """
    return dict(locals())


_COMMAND = Command(options)


def main(arguments: Sequence[str]) -> int:
    """Sweep; returns the exit status.

    Raises:
        UserError: An option is wrong, or no trial succeeds.
    """
    if "--help" in arguments or "-h" in arguments:
        from mixer_finetune.cli.lightning import print_fit_options

        _COMMAND.print_help(USAGE)
        print_fit_options("sweep", ("output_dir", "name", "evaluate_on", "push"))
        return 0
    vary, rest = _varied(arguments)
    own, rest = apart(rest, set(_COMMAND.options) - {"vary"}, ())
    given = _COMMAND.parsed(own)
    if rest and not rest[0].startswith("-"):
        raise UserError(f"expected: {USAGE}, got {rest[0]}")
    if not vary:
        raise UserError("nothing varies", advice="give {vary} an option and its values, as model.lr=0.01,0.03,0.1")
    for name in ("trials", "seeds", "folds"):
        if given[name] is not None and given[name] < (2 if name == "folds" else 1):
            raise UserError(f"{name} must be {2 if name == 'folds' else 1} or more, got {given[name]}", option=name)

    from mixer_finetune.engine.quiet import quiet
    from mixer_finetune.engine.sweep import planned, sweep
    from mixer_finetune.evaluation.sweep_figure import write_figure

    quiet()
    plan = planned(rest, vary, given["trials"], given["seeds"], given["folds"])
    folder = Path(given["output"]).expanduser() if given["output"] else _new_folder()
    print(f"{len(plan.points)} settings, {len(plan.repeats)} run(s) each, into {folder}", flush=True)
    outcome = sweep(plan, folder, given["final"])
    write_figure(plan.options, outcome, folder / "sweep.png")
    _show(plan, outcome)
    print(f"wrote sweep.json and sweep.png into {folder}")
    return 0


def _new_folder() -> Path:
    return Path("sweeps") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def _varied(arguments: Sequence[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """What `--vary` names, and the rest of the line."""
    found, rest, items = [], [], list(arguments)
    while items:
        item = items.pop(0)
        if item != "--vary" and not item.startswith("--vary="):
            rest.append(item)
            continue
        text = item.partition("=")[2] if item.startswith("--vary=") else items.pop(0) if items else ""
        name, equals, values = text.removeprefix("--").partition("=")
        parts = [part.strip() for part in _parts(values)]
        if not name or not equals or not all(parts):
            raise UserError(f"--vary needs an option and its values, as model.lr=0.01,0.03, got '{text}'")
        if len(set(parts)) < len(parts):
            raise UserError(f"--vary {text} has a value twice")
        found.append((name, parts))
    return found, rest


def _parts(text: str) -> list[str]:
    """A list by its commas, but for those in brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _show(plan: Sweep, outcome: Outcome) -> None:
    from statistics import stdev

    from mixer_finetune.evaluation.results import metric_name, metric_text

    rows = []
    for trial in sorted(outcome.trials, key=lambda trial: -trial.mean):
        if trial.failed:
            rows.append([*trial.values, f"failed: {terminal_line(trial.failed)}"])
            continue
        spread = f" ± {100 * stdev(trial.dev):.2f}" if len(trial.dev) > 1 else ""
        mark = " *" if trial.number == outcome.best else "  "
        rows.append([*trial.values, f"{metric_text(outcome.metric, trial.mean)}{spread}{mark}"])
    print_table([*plan.options, f"dev {metric_name(outcome.metric)}"], rows, numbers=len(plan.options))
    others = f"; {len(outcome.as_good)} other(s) are within one standard error" if outcome.as_good else ""
    print(f"* the best on the dev split{others}")
    if outcome.final is None:
        return
    print(terminal_line(f"the best options once more, {outcome.note}: {outcome.final}"))
    if outcome.results is None:
        print("there is no test split, so nothing was measured that the choice has not seen")
        return
    found = outcome.results
    low, high = found["interval"] or (None, None)
    between = f" ({low:.1%} to {high:.1%})" if low is not None else ""
    flatters = ", which the options were chosen on, so it flatters" if found["role"] != "test" else ""
    value = metric_text(found["metric"], found["value"])
    said = f"{found['split']}: {metric_name(found['metric'])} {value}{between} of {found['images']:,} images{flatters}"
    print(terminal_line(said))


def spell(option: str) -> str:
    """A parameter as it is typed behind sweep."""
    from mixer_finetune.cli.lightning import spell

    return f"--{option}" if option in _COMMAND.options else spell(option)
