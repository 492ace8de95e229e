"""What a comparison leaves: a page with the images, the numbers as JSON, a picture, and each image that differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.comparison import Comparison
from mixer_finetune.evaluation.comparison_figure import comparison_figure
from mixer_finetune.evaluation.comparison_page import answer_of, comparison_page, label_of
from mixer_finetune.evaluation.figures import DPI
from mixer_finetune.evaluation.predictions import csv_line
from mixer_finetune.evaluation.results import versions
from mixer_finetune.files import write_atomically, write_text
from mixer_finetune.texts import csv_cell


def write_comparison(comparison: Comparison, folder: Path, say: Callable[[str], None]) -> None:
    """Write compare.html, compare.json, compare.png and differences.csv.

    Args:
        comparison: Of the runs.
        folder: To write into; made where it is not there.
        say: Is told what is missing, a line for each.

    Raises:
        UserError: The folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror})", option="output") from error
    figure = comparison_figure(comparison)
    write_atomically(folder / "compare.png", lambda path: figure.savefig(path, dpi=DPI, format="png"))
    differences = _lines(comparison).encode("utf-8", "surrogateescape")
    write_atomically(folder / "differences.csv", lambda path: path.write_bytes(differences))
    write_text(folder / "compare.html", comparison_page(comparison, say))
    write_text(folder / "compare.json", json.dumps(_content(comparison), indent=2, ensure_ascii=False) + "\n")


def _content(comparison: Comparison) -> dict[str, Any]:
    runs = []
    for each in comparison.runs:
        intervals, error = each.measured
        facts = {"letter": each.letter, "run": str(each.run), "source": each.results.data["source"]}
        facts |= {"split": each.results.split, "metrics": each.metrics, "intervals": intervals}
        runs.append({**facts, "calibration_error": error})
    return {
        "images": len(comparison.files),
        "runs": runs,
        "notes": comparison.notes,
        "pairs": [asdict(pair) for pair in comparison.pairs],
        "classes": [asdict(each) for each in comparison.classes],
        "differing_images": len(comparison.differing),
        "options": {name: values for name, values in comparison.options},
        "seeds": [group.as_json() for group in comparison.seeds],
        "versions": versions(),
    }


def _lines(comparison: Comparison) -> str:
    """A line for each image that some runs answered rightly and others not."""
    letters = [each.letter for each in comparison.runs]
    columns = [f"{what}_{letter}" for letter in letters for what in ("answer", "probability")]
    lines = [csv_line(["file", "label", *columns])]
    for row in comparison.differing.tolist():
        cells = [cell for each in comparison.runs for cell in answer_of(each, row)]
        lines.append(csv_line(map(csv_cell, [comparison.files[row], label_of(comparison, row), *cells])))
    return "".join(lines)
