"""`mixer-finetune compare`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mixer_finetune.cli.tables import print_table
from mixer_finetune.errors import UserError
from mixer_finetune.texts import terminal_line

if TYPE_CHECKING:
    from mixer_finetune.evaluation.comparison import Comparison

_MOST_CLASSES, _MOST_OPTIONS = 10, 20


def compare(run: str, *runs: str, output: str | None = None) -> int:
    """Compare runs on the same images: is one better than the first, on which classes, on which images.

    Metrics have 95% intervals. The first run is tested against each other by the exact McNemar test, with Holm's
    correction where there are several; the interval of the difference is a paired bootstrap's. Images and classes are
    matched by name. Runs that differ by nothing but the seed are taken together, too.

    Args:
        run: Run folder of a finished fit, or last.
        *runs: More of them.
        output: Folder for compare.html (images included), compare.json, compare.png and differences.csv;
            comparisons/<date-time> when not given.

    Returns:
        The exit status.

    Raises:
        UserError: A run did not finish, or the runs are of other images or classes.
    """
    if not runs:
        raise UserError("expected: compare RUN RUN ..., got one run")
    target = Path(output).expanduser() if output else Path("comparisons") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if target.is_file() or (target / "compare.json").exists():
        raise UserError(f"{target} holds another comparison already", option="output", choices="another folder")

    from mixer_finetune.evaluation.comparison import compare_runs
    from mixer_finetune.evaluation.comparison_files import write_comparison

    comparison = compare_runs([run, *runs])
    _show(comparison)
    write_comparison(comparison, target, print)
    print(f"wrote compare.html, compare.json, compare.png and differences.csv into {target}")
    return 0


def _show(comparison: Comparison) -> None:
    """What came out, on the terminal."""
    from mixer_finetune.evaluation.comparison import option_text, verdict
    from mixer_finetune.evaluation.results import metric_name, metric_text

    metrics = list(comparison.runs[0].metrics)
    rows = []
    for each in comparison.runs:
        intervals, error = each.measured
        cells = [each.letter, str(each.run), str(each.results.data["source"])]
        for name in metrics:
            low, high = intervals.get(name, (0.0, 0.0))
            between = f" ({low:.1%} to {high:.1%})" if name in intervals else ""
            cells.append(f"{metric_text(name, each.metrics[name])}{between}" if name in each.metrics else "")
        rows.append([*cells, f"{error:.1%}"])
    print_table(["", "run", "data", *map(metric_name, metrics), "calibration error"], rows, numbers=3)
    for note in comparison.notes:
        print(terminal_line(note))
    for pair in comparison.pairs:
        said = verdict(pair, len(comparison.files), pair.first, pair.second, comparison.several, len(comparison.pairs))
        print(terminal_line(said))
    for group in comparison.seeds:
        letters = "".join(each.letter for run in group.runs for each in comparison.runs if each.run == run.run)
        print(
            f"{letters} differ only by seed: {metric_name(group.metric)} {group.mean:.2%} on average, standard "
            f"deviation {100 * group.spread:.2f} ({min(group.values):.2%} to {max(group.values):.2%})"
        )
    _show_classes(comparison)
    options = comparison.options
    if options:
        shown = [[name, *map(option_text, values)] for name, values in options[:_MOST_OPTIONS]]
        print_table(["option", *(each.letter for each in comparison.runs)], shown, numbers=9)
    if len(options) > _MOST_OPTIONS:
        print(f"and {len(options) - _MOST_OPTIONS} more options in compare.html")


def _show_classes(comparison: Comparison) -> None:
    from mixer_finetune.evaluation.comparison import p_text

    differing = [each for each in comparison.classes if each.spread > 0]
    if not differing:
        print("on each class the runs are right equally often")
        return
    letters = [each.letter for each in comparison.runs]
    right = "right, label by label" if comparison.several else "right"
    header = ["class", "images", *(f"{letter} {right}" for letter in letters)]
    tested = differing[0].p is not None
    rows = [
        [each.name, f"{each.images:,}", *(f"{count / each.images:.1%}" for count in each.right)]
        + ([p_text(each.p)] if each.p is not None else [])
        for each in differing[:_MOST_CLASSES]
    ]
    print_table(header + (["p, corrected"] if tested else []), rows, numbers=1)
    if len(differing) > _MOST_CLASSES:
        print(f"and {len(differing) - _MOST_CLASSES} more classes in compare.html")
