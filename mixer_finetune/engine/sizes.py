"""A model that was trained for several sizes, measured at each of them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from mixer_finetune.backbones.size import model_size
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.data.sizes import size_text
from mixer_finetune.engine.parts import Parts
from mixer_finetune.errors import NoImagesError

log = logging.getLogger(__name__)


def measure_other_sizes(parts: Parts) -> list[dict[str, Any]]:
    """Metrics at the sizes that the weights are for, but the model's own, on the split that results are of.

    Returns:
        Of each size `image_size` [height, width], `macs` of one image, and `metrics`; none for a model of one size.
    """
    trainer, model, data = parts.trainer, parts.model, parts.data
    geometry = model.assembled().geometry if hasattr(model, "assembled") else None
    if geometry is None or not isinstance(data, ImageDataModule) or data.evaluation_role is None:
        return []
    backbone, prepared, measured = model.backbone, model.backbone.preprocessing, []
    try:
        for size in sorted(geometry.image_sizes, key=math.prod):
            backbone.preprocessing = replace(prepared, image_size=size)
            if size == geometry.image_size or data.preprocessing.image_size != size:  # the second: given, not ours
                continue
            log.info(f"evaluating at {size_text(size)} px")
            trainer.test(model, data, verbose=False)
            measured.append(_at_size(model, size, trainer.callback_metrics))
    except NoImagesError:  # which the evaluation at the model's own size says
        return []
    finally:
        backbone.preprocessing = prepared
    return measured


def with_own(others: list[dict[str, Any]], model: Any, logged: Any) -> list[dict[str, Any]]:
    """The other sizes and the model's own, from the cheapest on; none for a model of one size."""
    own = {**_at_size(model, model.backbone.image_size, logged), "own": True} if others else {}
    return sorted([*others, own], key=lambda each: each["macs"]) if others else []


def _at_size(model: Any, size: tuple[int, int], logged: Any) -> dict[str, Any]:
    """A line of the table: what was measured at a size, and what an image of it costs."""
    whole = model.assembled()
    cost = model_size(whole.architecture, replace(whole.geometry, image_size=size, image_sizes=()), whole.num_classes)
    metrics = {name.removeprefix("test/"): float(value) for name, value in logged.items() if name.startswith("test/")}
    return {"image_size": list(size), "macs": cost.macs, "metrics": {k: v for k, v in metrics.items() if k != "loss"}}
