"""The report's first words: what came out, and whether it is better than the run before."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.comparison import verdict
from mixer_finetune.evaluation.comparison_page import options_table, pairs_table
from mixer_finetune.evaluation.measures import wilson
from mixer_finetune.evaluation.previous import BEFORE, THIS, against_previous
from mixer_finetune.evaluation.results import Results
from mixer_finetune.runs import RunFolder


def verdict_paragraph(results: Results, predictions: Any) -> str:
    """What came out, in a sentence or two."""
    if predictions is None:
        return '<p class="verdict">Nothing was evaluated.</p>'
    right, images = int(predictions.right.sum()), len(predictions)
    low, high = wilson(right, images)
    what = "All labels are right" if predictions.labels.ndim == 2 else "The answer is right"
    said = f"{what} for {right:,} of {images:,} images of split {results.split}: {right / max(images, 1):.1%} "
    said += f"(95% interval {low:.1%} to {high:.1%})."
    if predictions.labels.ndim == 1 and images:
        counts = np.bincount(predictions.labels, minlength=len(results.classes))
        most = int(counts.argmax())
        said += f" Always to say {results.classes[most]} would be right for {counts[most] / images:.1%}."
        right_of = np.bincount(predictions.labels[predictions.right], minlength=len(counts))
        shares = [(right_of[i] / counts[i], -counts[i], i) for i in np.flatnonzero(counts).tolist()]
        worst, _, number = min(shares)
        if len(shares) > 1 and worst < 1:
            said += f" Hardest is {results.classes[number]}, right for {worst:.0%} of {counts[number]:,}."
    return f'<p class="verdict">{page.text(said)}</p>'


def previous_section(run: RunFolder, results: Results) -> str:
    """Whether this run is better than the one before it; nothing where there is none."""
    found = against_previous(run, results)
    if found is None:
        return ""
    (pair,) = found.pairs
    before = found.runs[0]
    said = verdict(pair, len(found.files), BEFORE, THIS, found.several)
    return page.section(
        "Against the previous run of this data",
        f"<p>{page.text(said[0].upper() + said[1:])}</p><p>It was {page.text(before.title)}; both answered the same "
        "images. The options that differ:</p>" + options_table(found) + pairs_table(found.pairs),
    )
