"""The page of a comparison, which shows the images on which the runs differ and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixer_finetune.backbones.folder import read_config
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.comparison import Comparison, Pair, option_text, p_text, verdict
from mixer_finetune.evaluation.comparison_figure import comparison_svgs
from mixer_finetune.evaluation.matched_runs import Compared
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.report_images import decoded_image
from mixer_finetune.evaluation.results import metric_name, metric_text
from mixer_finetune.evaluation.run_list import method
from mixer_finetune.evaluation.splits import open_data

MOST_IMAGES = 24  # of a kind


def comparison_page(comparison: Comparison, say: Callable[[str], None]) -> str:
    """The page as HTML.

    Args:
        comparison: Of the runs.
        say: Is told where the images can't be shown.
    """
    letters = [each.letter for each in comparison.runs]
    names = [f"{each.letter}: {each.title}" for each in comparison.runs]
    verdicts = [
        verdict(pair, len(comparison.files), pair.first, pair.second, comparison.several, len(comparison.pairs))
        for pair in comparison.pairs
    ]
    picture = page.row(comparison_svgs(comparison), "figure")
    sections = [
        "".join(f"<p><b>{page.text(sentence)}</b></p>" for sentence in verdicts),
        "".join(f'<p class="warning">{page.text(note)}</p>' for note in comparison.notes),
        page.section("Runs", _runs(comparison) + _seeds(comparison)),
        page.section("Differences", pairs_table(comparison.pairs) + picture),
        page.section("Classes", _classes(comparison, letters)),
        *_image_sections(comparison, say),
        page.section("Options that differ", options_table(comparison)),
    ]
    return page.document(" against ".join(names) if len(names) == 2 else f"{len(names)} runs compared", sections)


def _runs(comparison: Comparison) -> str:
    """Runs side by side, a column each, so that two of them fit onto a telephone."""
    runs = comparison.runs
    rows = [["run", *(page.text(each.title) for each in runs)]]
    rows.append(["method", *(page.text(method(each.config, each.results)) for each in runs)])
    for name in runs[0].metrics:
        rows.append([page.text(metric_name(name)), *(_measured(each, name) for each in runs)])
    rows.append(["calibration error", *(f"{each.measured[1]:.1%}" for each in runs)])
    text = f"<p>On the same {len(comparison.files):,} images; below each value its 95% interval.</p>"
    return text + page.table(["", *(each.letter for each in runs)], rows)


def _measured(each: Compared, name: str) -> str:
    if name not in each.metrics:
        return ""
    low, high = each.measured[0].get(name, (0.0, 0.0))
    between = f"<br><small>{low:.1%} to {high:.1%}</small>" if name in each.measured[0] else ""
    return metric_text(name, each.metrics[name]) + between


def _seeds(comparison: Comparison) -> str:
    lines = []
    for group in comparison.seeds:
        runs = {run.run for run in group.runs}
        letters = ", ".join(each.letter for each in comparison.runs if each.run in runs)
        lines.append(
            f"<p>{letters} differ only by seed: {page.text(metric_name(group.metric))} {group.mean:.2%} on average, "
            f"standard deviation {100 * group.spread:.2f} ({min(group.values):.2%} to {max(group.values):.2%}).</p>"
        )
    if not lines:
        return (
            "<p><small>A run is one draw: with another seed it would end elsewhere. Runs of several seeds, compared "
            "here together, say how far.</small></p>"
        )
    return "".join(lines)


def pairs_table(pairs: list[Pair]) -> str:
    """How other runs differ from the first, a column each."""
    first = pairs[0].first
    rows = [["right answers, points", *(_points(pair.difference, pair.interval) for pair in pairs)]]
    if all(pair.f1 for pair in pairs):
        rows.append(["macro-F1, points", *(_points(*pair.f1) for pair in pairs if pair.f1)])
    rows.append([f"images that only it has right, not {first}", *(f"{pair.only_second:,}" for pair in pairs)])
    rows.append([f"images that only {first} has right", *(f"{pair.only_first:,}" for pair in pairs)])
    rows.append(["images that both have wrong", *(f"{pair.both_wrong:,}" for pair in pairs)])
    rows.append(["p, exact McNemar test", *(page.text(p_text(pair.p)) for pair in pairs)])
    if len(pairs) > 1:
        rows.append(
            [
                f"p after Holm's correction for {len(pairs)} tests",
                *(page.text(p_text(pair.corrected)) for pair in pairs),
            ]
        )
    return page.table(["", *(f"{pair.second} less {first}" for pair in pairs)], rows)


def _points(difference: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * difference:+.2f}<br><small>{100 * low:+.2f} to {100 * high:+.2f}</small>"


def _classes(comparison: Comparison, letters: list[str]) -> str:
    tested = len(letters) == 2
    rows = []
    for each in comparison.classes:
        recalls = [count / each.images for count in each.right]
        cells = [page.text(each.name), f"{each.images:,}", *(f"{recall:.1%}" for recall in recalls)]
        cells.append(f"{100 * (recalls[1] - recalls[0]):+.1f}" if tested else f"{100 * each.spread:.1f}")
        rows.append(cells + ([page.text(p_text(each.p))] if each.p is not None else []))
    head = ["class", "images", *(f"recall of {letter}" for letter in letters), "points"]
    what = "all its labels, image by image" if comparison.several else "recall"
    text = (
        f"<p>Of each class {what}; p is that of McNemar's test on its images, corrected for the number of classes.</p>"
    )
    if not tested:
        text = "<p>Of each class the recall of each run, and how far they lie apart.</p>"
    return text + page.table(head + (["p"] if tested else []), rows, texts=1, sortable=True)


def options_table(comparison: Comparison) -> str:
    """The options in which the runs differ."""
    letters = [each.letter for each in comparison.runs]
    if not comparison.options:
        return "<p>None: the runs have the same configuration.</p>"
    rows = [
        [page.code(name), *(page.text(option_text(value)) for value in values)] for name, values in comparison.options
    ]
    return page.table(["option", *letters], rows, texts=1 + len(letters))


def _image_sections(comparison: Comparison, say: Callable[[str], None]) -> list[str]:
    """Images that some runs answered rightly and others not."""
    rows = comparison.differing
    if not len(rows):
        return [page.section("Images", "<p>On each image all runs are right, or all are wrong.</p>")]
    kinds = [("Images that some runs answered rightly, and others not", rows)]
    if len(comparison.runs) == 2:
        first = comparison.right[0][rows]
        letters = [each.letter for each in comparison.runs]
        kinds = [
            (f"Images that only {letters[1]} answered rightly", rows[~first]),
            (f"Images that only {letters[0]} answered rightly", rows[first]),
        ]
    try:
        pictures = _Pictures(comparison)
    except UserError as error:
        say(f"the images can't be shown: {error}")
        return [page.section("Images", f"<p>The images can't be shown: {page.text(error)}.</p>")]
    return [page.section(f"{title}: {len(those):,}", _cards(comparison, pictures, those)) for title, those in kinds]


class _Pictures:
    """The images of the first run whose data can be opened."""

    def __init__(self, comparison: Comparison) -> None:
        problem: UserError | None = None
        for each in comparison.runs:
            try:
                self.split: Split = open_data(each.config).splits[str(each.results.role)]
                self.run, config = each, each.run.model / "config.json"
                # Without the model, images are shown as they are.
                self.preprocessing = read_config(config).preprocessing if config.is_file() else Preprocessing()
                return
            except UserError as error:
                problem = problem or error
            except KeyError:
                problem = problem or UserError(f"the data has no {each.results.role} split any more")
        assert problem is not None
        raise problem

    def __call__(self, row: int) -> str | None:
        """The image at a position, as an element."""
        image = decoded_image(self.split, self.run.found.files[row], int(self.run.indices[row]), self.preprocessing)
        return None if image is None else page.img(page.thumbnail(image))


def _cards(comparison: Comparison, pictures: _Pictures, rows: Any) -> str:
    shown = rows[:MOST_IMAGES].tolist()
    cards, lost = [], 0
    for row in shown:
        picture = pictures(row)
        if picture is None:
            lost += 1
            continue
        lines = [f"<b>{page.text(label_of(comparison, row))}</b>"]
        for i, each in enumerate(comparison.runs):
            answer, probability = answer_of(each, row)
            sure = f" ({float(probability):.0%})" if probability else ""
            lines.append(f"{'✓' if comparison.right[i, row] else '✗'} {each.letter}: {page.text(answer)}{sure}")
        lines.append(f"<small>{page.text(Path(comparison.files[row]).name)}</small>")
        cards.append(page.card([picture], "<br>".join(lines)))
    text = f"<p>The {len(shown)} with the surest wrong answer.</p>" if len(rows) > len(shown) else ""
    if lost:
        text += f"<p>{lost} more can't be shown: the data no longer holds the images that were evaluated.</p>"
    return text + page.row(cards, "thumb") if cards or text else "<p>None.</p>"


def label_of(comparison: Comparison, row: int) -> str:
    """The label of an image; several as a JSON list."""
    labels = comparison.runs[0].found.labels[row]
    return _names(comparison.names, labels) if comparison.several else comparison.names[labels]


def _names(names: list[str], chosen: Any) -> str:
    return json.dumps([names[i] for i in np.flatnonzero(chosen)], ensure_ascii=False)


def answer_of(each: Compared, row: int) -> tuple[str, str]:
    """What a run answers to an image, and how sure it is; of several labels the least sure of those that it says."""
    found = each.found
    if isinstance(found, Predictions):
        return found.names[found.top[row, 0]], f"{found.confidence[row]:.6f}"
    answers = found.answers[row]
    sure = found.probabilities[row][answers]
    return _names(found.names, answers), f"{sure.min():.6f}" if len(sure) else ""
