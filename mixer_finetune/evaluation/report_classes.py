"""The report's parts on classes: confusions, recall of each class, calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.figures import MOST_NUMBERED_CLASSES, MOST_PIXELS, reliability_svg
from mixer_finetune.evaluation.measures import ClassFigures, ConfusionMatrix, calibration, class_figures, wilson
from mixer_finetune.evaluation.mosaics import confusion_pixels, data_uri
from mixer_finetune.evaluation.predictions import Predictions


def class_sections(predictions: Predictions, matrix: ConfusionMatrix) -> list[str]:
    """Confusion matrix, classes and calibration.

    Args:
        predictions: Of the evaluated split.
        matrix: Of them.
    """
    bins, error = calibration(predictions)
    calibrated = (
        "<p>Of the answers given with a confidence, how many were right. Expected calibration error: "
        f"<b>{error:.1%}</b> (10 bins).</p>" + page.row([reliability_svg(bins)], "figure narrow")
    )
    return [
        page.section("Confusion matrix", _confusion(matrix, predictions.names)),
        page.section("Classes", without_images_note(matrix) + _figures(class_figures(matrix, predictions.names))),
        page.section("Calibration", calibrated),
    ]


def without_images_note(matrix: ConfusionMatrix) -> str:
    """How many classes are left out, as a paragraph; nothing where all have images."""
    count = matrix.without_images
    if not count:
        return ""
    verb = "has no image in the split and is" if count == 1 else "have no image in the split and are"
    return f"<p>{count:,} of {matrix.classes:,} classes {verb} left out.</p>"


def _confusion(matrix: ConfusionMatrix, names: list[str]) -> str:
    rows, columns = np.flatnonzero(matrix.labelled), matrix.occurring
    if len(columns) <= MOST_NUMBERED_CLASSES:
        return _table(matrix, rows, columns, names)
    # Too many classes for numbers: a picture of all, which says what the pointer is on, and the worst in numbers.
    wrong = matrix.labelled + matrix.called - 2 * matrix.right
    worst = np.sort(rows[np.argsort(-wrong[rows], kind="stable")][:MOST_NUMBERED_CLASSES])
    counts = matrix.binned(MOST_PIXELS)
    shared = f" {len(columns):,} classes share {len(counts):,} pixels a side." if len(counts) < len(columns) else ""
    position = {int(number): i for i, number in enumerate(columns)}
    entries = zip(matrix.true, matrix.predicted, matrix.images, strict=True)
    data = {
        "names": [names[number] for number in columns],
        "pixels": len(counts),
        "cells": [[position[int(i)], position[int(j)], int(count)] for i, j, count in entries],
    }
    return (
        "<p>All classes that occur, one pixel for each pair (rows: true, columns: predicted; brighter: a larger share "
        f"of the true class).{shared} Point at a pixel to read it.</p>"
        f'<div id="matrix"><img src="{data_uri(confusion_pixels(counts))}" alt="confusion matrix">'
        '<output id="entry">&nbsp;</output></div>'
        + page.json_script(data, "confusion")
        + f"<p>The {len(worst)} classes with the most confusions:</p>"
        + _table(matrix, worst, worst, names)
    )


def _table(matrix: ConfusionMatrix, rows: NDArray[np.intp], columns: NDArray[np.intp], names: list[str]) -> str:
    counts = matrix.dense(rows, columns)
    head = "".join(f'<th scope="col"><span>{page.text(names[j])}</span></th>' for j in columns)
    lines = []
    for i, line in zip(rows, counts, strict=True):
        cells = "".join(
            f'<td class="{"hit" if i == j else "miss"}" style="--share:{count / matrix.labelled[i]:.2f}">'
            f"{count or ''}</td>"
            for j, count in zip(columns, line, strict=True)
        )
        lines.append(f'<tr><th scope="row">{page.text(names[i])}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="confusion"><caption>rows: true, columns: predicted</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figures(classes: list[ClassFigures]) -> str:
    """Each class in a table that sorts, the lowest recall first."""
    measured = sorted(((c.recall, c) for c in classes if c.recall is not None), key=lambda pair: pair[0])
    rows = []
    for recall, figures in measured:
        low, high = wilson(round(recall * figures.images), figures.images)
        share = f'<div class="share" style="--share:{recall:.3f}">{recall:.1%}</div>'
        found = f"{share}<small>{low:.0%} to {high:.0%}</small>"
        rows.append(
            [page.text(figures.name), f"{figures.images:,}", found, f"{figures.precision:.1%}", f"{figures.f1:.1%}"]
        )
    text = "<p>The lowest recall first, each with its 95% interval; a click on a column sorts by it.</p>"
    return text + page.table(["class", "images", "recall", "precision", "F1"], rows, sortable=True)
