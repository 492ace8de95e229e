"""What the dev split says of how far a trained model can be trusted, and the temperature that goes into its head."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixer_finetune.engine.choose import dev_metrics
from mixer_finetune.engine.parts import Parts
from mixer_finetune.training.calibration import Calibration, Sample, familiarity
from mixer_finetune.training.reliability import DevLogits, binned, calibration_error
from mixer_finetune.training.task import Task
from mixer_finetune.training.temperature import Temperature, fit_temperature, fold_into, mean_loss

log = logging.getLogger(__name__)
# Weights of 16 bits would be rounded so much by a division that answers change.
_EXACT = ("torch.float32", "torch.float64")


def calibrate(parts: Parts, chosen_on_dev: str | None = None) -> Calibration | None:
    """Fit a temperature on the dev split, and divide the model's head by it.

    Args:
        parts: With the weights that are to be exported in the model.
        chosen_on_dev: What else was chosen on the dev split.

    Returns:
        What was found, the same on all devices; None where there is no dev split.
    """
    model: Any = parts.model
    found = _dev_logits(parts)
    if found is None:
        if parts.options.calibrate:
            log.info("calibrated no: there is no dev split to fit a temperature on")
        return None
    logits, targets = found
    temperature = _temperature(parts, logits, targets)
    if temperature.value != 1.0:
        fold_into(model.head, temperature.value)
    split = getattr(parts.data, "splits", {}).get("val")
    calibration = Calibration(
        task=model.task.name,
        split="val" if split is None else split.name,
        images=len(logits),
        temperature=temperature.value,
        why_not=temperature.why_not,
        dev=_before_and_after(logits, targets, model.task, temperature),
        chosen_on_dev=chosen_on_dev,
        **_samples(logits, targets, model.task, temperature.value),
    )
    _say(calibration)
    return calibration


def _dev_logits(parts: Parts) -> tuple[Tensor, Tensor] | None:
    """Logits (n, C) and targets of the dev split, over all devices; None where there is none."""
    model: Any = parts.model
    images = len(getattr(parts.data, "splits", {}).get("val", ()))
    if not parts.data.val_dataloader():
        return None
    rows = DevLogits(model.task, images, model.backbone.with_head(model.head).num_classes)
    if (features := model.features.get("val")) is not None:  # the frozen backbone need not compute them again
        good = features.good[features.good % rows.every == 0]
        with torch.no_grad():
            logits = model(features.layer()[good].to(model.device))
        return logits.cpu(), torch.from_numpy(parts.data.splits["val"].labels[good])  # type: ignore[attr-defined]
    model.gathered = rows
    try:
        dev_metrics(parts)
        return rows.compute() if rows.seen else None  # limit_val_batches may be 0
    finally:
        model.gathered = None


def _temperature(parts: Parts, logits: Tensor, targets: Tensor) -> Temperature:
    model: Any = parts.model
    ones = logits.new_ones(len(logits)).double()
    if not parts.options.calibrate:
        return Temperature(1.0, ones, "it was not asked for")
    if not isinstance(model.head, nn.Linear):
        return Temperature(1.0, ones, f"a {type(model.head).__name__} as head can't be divided by one")
    if str(model.head.weight.dtype) not in _EXACT:
        return Temperature(1.0, ones, "weights of 16 bits would be rounded too much")
    all_right = int(model.task.right(logits, targets)) == len(logits)
    return fit_temperature(logits, targets, lambda z, y: model.task.losses(z, y, 0.0), all_right)


def _before_and_after(
    logits: Tensor, targets: Tensor, task: Task, temperature: Temperature
) -> dict[str, dict[str, float]]:
    found = {}
    for name, by in (("before", temperature.held_out.new_ones(len(logits))), ("after", temperature.held_out)):
        nll = mean_loss(logits, targets, lambda z, y: task.losses(z, y, 0.0), by)
        bins = binned(*task.confidences(targets, task.probabilities(logits.double() / by[:, None])))
        found[name] = {"nll": round(nll, 6), "calibration_error": calibration_error(bins)}
    return found


def _samples(logits: Tensor, targets: Tensor, task: Task, temperature: float) -> dict[str, Any]:
    """What is kept of the dev split's logits."""
    logits = logits.double()
    kept: dict[str, Any] = {"familiarity": Sample.of(familiarity(logits, task.name).numpy())}
    if targets.ndim == 1:
        kept["true"] = Sample.of(logits.softmax(-1).gather(1, targets[:, None])[:, 0].numpy())
        confidence, right = (part.numpy() for part in task.confidences(targets, (logits / temperature).softmax(-1)))
        kept["confidence"] = sample = Sample.of(confidence)
        at_least = right[np.argsort(confidence, kind="stable")][::-1].cumsum() / np.arange(1, len(right) + 1)
        kept["accuracy"] = [round(float(at_least[len(right) - rank]), 5) for rank in sample.ranks]
    return kept


def _say(found: Calibration) -> None:
    on = f"{found.images:,} images of split {found.split}"
    before, after = found.dev["before"], found.dev["after"]
    if found.why_not is not None:
        log.info(f"calibrated no temperature: {found.why_not} (on {on}: calibration error "
                 f"{before['calibration_error']:.1%})")  # fmt: skip
        return
    log.info(
        f"calibrated by temperature {found.temperature:.3g}, fitted on {on}: log-loss {before['nll']:.4f} to "
        f"{after['nll']:.4f}, calibration error {before['calibration_error']:.1%} to {after['calibration_error']:.1%}, "
        "cross-fitted: each image has no say in its own temperature"
    )
