"""The report's part on trust: the temperature, the curve of risk and coverage, the sets of labels."""

from __future__ import annotations

from typing import Any

from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.figures import risk_coverage_svg
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.results import Results
from mixer_finetune.evaluation.trust import (
    before_and_after,
    change_sentence,
    risk_curve,
    risk_rows,
    set_rows,
    temperature_sentence,
)


def trust_section(results: Results, predictions: Any) -> str:
    """How far the probabilities can be trusted; empty where nothing is known of it.

    Args:
        results: Of the run.
        predictions: Of the evaluated split.
    """
    parts = []
    if (found := results.calibration) is not None:
        told = [temperature_sentence(found), change_sentence(found, results.split)]
        parts += [f"<p>{page.text(sentence)}</p>" for sentence in told if sentence]
        if found["why_not"] is None:
            parts.append(_table(("", "before", "after"), before_and_after(found, results.split)))
    if isinstance(predictions, Predictions) and len(predictions):
        parts.append(
            "<p>Where the least sure images get no answer (<code>predict --abstain</code>), how often the others are "
            "right:</p>"
            + page.row([risk_coverage_svg(*risk_curve(predictions))], "figure narrow")
            + _table(("images with an answer", "from a confidence of", "right"), risk_rows(predictions))
        )
    if found is not None and (rows := set_rows(found)):
        parts.append(
            "<p>Sets of labels that hold the true one with a stated probability (<code>predict --coverage</code>), by "
            f"the {found['fitted_on_images']:,} images of split {page.text(found['fitted_on'])}:</p>"
            + _table(("promised", f"of the images of {results.split}", "labels in a set, on average"), rows)
        )
    return page.section("Trust", "".join(parts)) if parts else ""


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    head = "".join(f'<th scope="col">{page.text(name)}</th>' for name in heads)
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{page.text(cell)}</td>" for cell in row) + "</tr>")
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
