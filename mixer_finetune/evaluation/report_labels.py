"""The report's parts where images have several labels: each class, and images that were answered wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.cropping import evaluation_crop
from mixer_finetune.data.sources import Split
from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.label_measures import label_figures
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.report_images import MISTAKES, decoded_image
from mixer_finetune.images import to_image, to_tensor


def label_sections(found: LabelSets) -> list[str]:
    """The classes in a table, the lowest average precision first."""
    figures = label_figures(found)
    measured = sorted((f.average_precision, i) for i, f in enumerate(figures) if f.average_precision is not None)
    rows = []
    for area, i in measured:
        f = figures[i]
        shares = (f"{value or 0:.1%}" for value in (area, f.f1, f.recall, f.precision))
        rows.append([page.text(f.name), f"{f.images:,}", *shares])
    left = len(figures) - len(measured)
    note = f"<p>{left:,} of {len(figures):,} classes have no image in the split and are left out.</p>" if left else ""
    text = (
        "<p>Each class, the hardest first; a click on a column sorts by it. A class is an answer from a probability of "
        f"one half on.</p>{note}"
    )
    head = ["class", "images", "average precision", "F1", "recall", "precision"]
    return [page.section("Classes", text + page.table(head, rows, sortable=True))]


def label_image_sections(
    found: LabelSets, backbone: Backbone, split: Split, method: str, say: Callable[[str], None]
) -> list[str]:
    """The images with the surest wrong answers.

    Args:
        found: Of the evaluated split; some are wrong.
        backbone: Whose pre-processing shows what the model saw.
        split: The evaluated one.
        method: Of explanation; answers of several labels are not explained.
        say: Is told what takes time.
    """
    cards, rows = [], found.mistakes()[:MISTAKES].tolist()
    for row in rows:
        image = decoded_image(split, found.files[row], int(found.indices[row]), backbone.preprocessing)
        if image is not None:
            seen = to_image(evaluation_crop(to_tensor(image)[None], backbone.preprocessing)[0])
            cards.append(page.card([page.img(page.thumbnail(seen))], _caption(found, row)))
    lost = len(rows) - len(cards)
    told = f"<p>{lost} more can't be shown: the data no longer holds the images that were evaluated.</p>"
    return [page.section(f"The {len(cards)} surest mistakes", (told if lost else "") + page.row(cards, "card"))]


def _caption(found: LabelSets, row: int) -> str:
    labels, answers = found.labels[row], found.answers[row]
    kinds = {"missed": labels & ~answers, "wrongly said": answers & ~labels, "right": labels & answers}
    parts = []
    for title, chosen in kinds.items():
        names = [f"{page.text(found.names[i])} ({found.probabilities[row, i]:.0%})" for i in np.flatnonzero(chosen)]
        if names:
            parts.append(f"{title}: {', '.join(names)}" if title == "right" else f"<b>{title}</b>: {', '.join(names)}")
    return "<br>".join(parts) + f"<br><small>{page.text(Path(found.files[row]).name)}</small>"
