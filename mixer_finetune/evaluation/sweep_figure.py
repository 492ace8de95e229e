"""The picture of a sweep: what each setting reached on the dev split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixer_finetune.evaluation.figure_text import figure_texts
from mixer_finetune.evaluation.figures import DPI
from mixer_finetune.evaluation.results import metric_name
from mixer_finetune.files import write_atomically

_MOST_SHOWN = 60
_BEST, _OTHER = "#d2691e", "#1f77b4"


def sweep_figure(options: Sequence[str], outcome: Any) -> Figure:
    """A row for each setting, the best on top: its mean, and a small dot for each repetition.

    Args:
        options: Names of those that varied.
        outcome: Of `sweep`.
    """
    good = [trial for trial in outcome.trials if trial.dev and not trial.failed]
    shown = sorted(good, key=lambda trial: -trial.mean)[:_MOST_SHOWN]
    short = [name.partition(".")[2] or name for name in options]
    labels = [", ".join(f"{name} {value}" for name, value in zip(short, trial.values, strict=True)) for trial in shown]
    figure = Figure(figsize=(8, 0.3 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, trial in enumerate(shown):
        color = _BEST if trial.number == outcome.best else _OTHER
        if len(trial.dev) > 1:
            axes.plot(trial.dev, [row] * len(trial.dev), ".", color=color, alpha=0.5)
        axes.plot([trial.mean], [row], "o", color=color)
    axes.set_yticks(range(len(shown)), list(figure_texts(labels)))
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric_name(outcome.metric)} on the dev split")
    axes.grid(axis="x", alpha=0.3)
    if len(good) > len(shown):
        axes.set_title(f"the best {len(shown)} of {len(good)} settings", fontsize="medium")
    return figure


def write_figure(options: Sequence[str], outcome: Any, path: Path) -> None:
    """Write it as a PNG."""
    figure = sweep_figure(options, outcome)
    write_atomically(path, lambda target: figure.savefig(target, dpi=DPI, format="png"))
