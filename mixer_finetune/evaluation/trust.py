"""How far the probabilities of a run can be trusted, in words and tables for report and card."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.evaluation.predictions import Predictions

# Shares of the images that get an answer, for which the risk-coverage curve is told in numbers.
SHARES = (1.0, 0.95, 0.9, 0.8, 0.5)


def temperature_sentence(found: dict[str, Any]) -> str:
    """What was done with the temperature, and what it did.

    Args:
        found: `calibration` of results.json.
    """
    on = f"{found['fitted_on_images']:,} images of split {found['fitted_on']}"
    if found["why_not"] is not None:
        return f"The probabilities are as training left them, without a temperature: {found['why_not']} ({on})."
    told = (
        f"The head is divided by a temperature of {found['temperature']:.3g}, fitted on {on} after training: its "
        "answers are the same, its probabilities can be believed more."
    )
    if found["chosen_on_dev"]:
        told += f" These images also chose {found['chosen_on_dev']}, so it may be a little low."
    return told


def change_sentence(found: dict[str, Any], split: str | None) -> str | None:
    """What the temperature did to the evaluated images; None where there was none.

    Args:
        found: `calibration` of results.json.
        split: Name of the evaluated split.
    """
    if found["why_not"] is not None or not found.get("images"):
        return None
    low, high = found["nll_change_interval"]
    interval = f"95% interval {low:+.4f} to {high:+.4f}"
    told = f"On split {split} it changes the log-loss by {found['nll_change']:+.4f} ({interval})"
    return told + (", on the very images that it was fitted on." if found["same_images"] else ".")


def before_and_after(found: dict[str, Any], split: str | None) -> list[tuple[str, str, str]]:
    """Rows of a table: what is measured, before and after the temperature.

    Args:
        found: `calibration` of results.json.
        split: Name of the evaluated split.
    """
    rows = []
    if found.get("images"):
        for name, key in (("log-loss", "nll"), ("calibration error", "calibration_error")):
            rows.append((f"{name}, {split}", _figure(found["before"], key), _figure(found["after"], key)))
    for name, key in (("log-loss", "nll"), ("calibration error", "calibration_error")):
        label = f"{name}, {found['fitted_on']}, cross-fitted"
        rows.append((label, _figure(found["dev"]["before"], key), _figure(found["dev"]["after"], key)))
    return rows


def _figure(figures: dict[str, Any], key: str) -> str:
    if key == "calibration_error":
        return f"{figures[key]:.2%}"
    interval = figures.get("nll_interval")
    return f"{figures[key]:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def set_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a table of `predict --coverage`: the coverage promised, that of the evaluated images, the mean size."""
    return [(f"{s['coverage']:.0%}", f"{s['covered']:.1%}", f"{s['labels']:.2f}") for s in found.get("sets", ())]


def risk_curve(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of wrong answers among the surest images, for each share of the images that gets an answer.

    Returns:
        (n,) shares of images with an answer, ascending; (n,) shares of these answers that are wrong.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / max(len(order), 1), (~predictions.right[order]).cumsum() / answered


def risk_rows(predictions: Predictions) -> list[tuple[str, str, str]]:
    """Rows of a table: share answered, confidence from which on, accuracy of these answers."""
    order, n = np.argsort(-predictions.confidence, kind="stable"), len(predictions)
    rows = []
    for share in SHARES:
        count = max(1, int(np.ceil(share * n)))
        accuracy = predictions.right[order[:count]].mean()
        rows.append((f"{share:.0%}", f"{predictions.confidence[order[count - 1]]:.3f}", f"{accuracy:.2%}"))
    return rows
