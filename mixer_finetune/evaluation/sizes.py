"""Accuracy against cost, over the sizes that a model was trained for."""

from __future__ import annotations

from collections.abc import Iterator

from mixer_finetune.evaluation import page
from mixer_finetune.evaluation.results import Results, metric_name, metric_text


def size_rows(results: Results) -> Iterator[tuple[str, str, str, str]]:
    """Size in pixels, GMACs of an image, that cost over the model's own, and the metric that is watched."""
    own = next((each["macs"] for each in results.sizes if each.get("own")), None)
    for each in results.sizes:
        height, width = each["image_size"]
        share = f"{each['macs'] / own:.2f}" if own else ""
        value = each["metrics"].get(results.monitor)
        shown = "" if value is None else metric_text(results.monitor, value)
        yield f"{height} x {width}", f"{each['macs'] / 1e9:.3g}", share, shown


def size_header(results: Results) -> tuple[str, str, str, str]:
    """What the columns are."""
    return "px", "GMACs", "cost", metric_name(results.monitor)


def sizes_section(results: Results) -> str:
    """A section of the report; empty for a model of one size."""
    if not results.sizes:
        return ""
    head = "".join(f"<th>{page.text(cell)}</th>" for cell in size_header(results))
    rows = "".join(f"<tr>{''.join(f'<td>{page.text(cell)}</td>' for cell in row)}</tr>" for row in size_rows(results))
    text = "<p>One set of weights answers at each of these sizes; the cost is that of an image.</p>"
    return page.section("Accuracy against cost", f"{text}<table><tr>{head}</tr>{rows}</table>")
