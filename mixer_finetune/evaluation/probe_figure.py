"""The picture of a probe: accuracy by layer, and by the number of images a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from mixer_finetune.evaluation.figure_text import figure_text, figure_title
from mixer_finetune.evaluation.figures import DPI
from mixer_finetune.files import write_atomically

_NAMES = {"ridge": "ridge", "logistic": "logistic regression", "knn": "nearest neighbours"}


class ProbedLayer(Protocol):
    """What is drawn of a layer: see `engine.probe.Row`."""

    dev: dict[str, float]
    few_shot: dict[int, list[float]]
    layer: str

    @property
    def name(self) -> str: ...  # noqa: D102


def write_probe_figure(rows: Sequence[ProbedLayer], path: Path, title: str) -> None:
    """Draw it.

    Args:
        rows: Of each backbone and size its layers, the pre-logits last.
        path: Of the PNG file.
        title: In words.
    """
    figure = probe_figure(rows, title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))


def probe_figure(rows: Sequence[ProbedLayer], title: str) -> Figure:
    """Left the dev accuracy by layer, or by method where there is one layer; right few-shot accuracy."""
    series: dict[str, list[ProbedLayer]] = {}
    for row in rows:
        series.setdefault(row.name, []).append(row)
    few_shot = any(row.few_shot for row in rows)
    figure = Figure(figsize=(5.5 * (1 + few_shot), 4.2 + 0.18 * len(series)), layout="constrained")
    axes = figure.subplots(1, 1 + few_shot, squeeze=False)[0]
    by_layer = any(len(layers) > 1 for layers in series.values())
    methods = list(_NAMES)
    for name, layers in series.items():
        if by_layer:
            depth = np.arange(1, len(layers) + 1) / len(layers)
            drawn = axes[0].plot(depth, [each.dev["ridge"] for each in layers], marker="o", markersize=3)
        else:
            at = [i for i, method in enumerate(methods) if method in layers[0].dev]
            drawn = axes[0].plot(at, [layers[0].dev[methods[i]] for i in at], marker="o", linestyle="none")
        drawn[0].set_label(figure_text(name, 60))
        if few_shot:
            shots = layers[-1].few_shot
            means = [float(np.mean(values)) for values in shots.values()]
            spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in shots.values()]
            axes[1].errorbar(list(shots), means, spread, marker="o", markersize=3, capsize=3)
    if by_layer:
        axes[0].set(xlabel="depth (the last point: pre-logits)", ylabel="dev accuracy", title="Ridge by layer")
    else:
        axes[0].set_xticks(range(len(methods)), list(_NAMES.values()))
        axes[0].set(ylabel="dev accuracy", title="Pre-logits", xlim=(-0.5, len(methods) - 0.5))
    if few_shot:
        shots_shown = sorted({count for row in rows for count in row.few_shot})
        axes[1].set_xscale("log")
        axes[1].set_xticks(shots_shown, [str(count) for count in shots_shown], minor=False)
        axes[1].minorticks_off()
        axes[1].set(xlabel="images a class", ylabel="dev accuracy", title="Few-shot, mean and spread over seeds")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize="small")
    text, fonts = figure_title(title)
    figure.suptitle(text, fontfamily=fonts)
    return figure
