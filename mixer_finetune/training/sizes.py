"""Training at several sizes: what the backbone and the module do about it. Which step has which is in `data.sizes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.preprocessing import as_pair
from mixer_finetune.data.sizes import SizeOrder, SizePlan, make_plan
from mixer_finetune.errors import UserError


def take_sizes(
    backbone: Backbone, sizes: Sequence[int | tuple[int, int]] | None, order: SizeOrder, final_epochs: int, seed: int
) -> SizePlan | None:
    """Have a backbone take the sizes that a run trains at.

    Args:
        backbone: At the size of the evaluation.
        sizes: Of the training images; None for that size.
        order: As `SizePlan`.
        final_epochs: Epochs at the end at the size of the evaluation.
        seed: Of the run.

    Raises:
        UserError: A size is no multiple of the patch size, or the plan can't be.
    """
    pairs = None if sizes is None else [as_pair(size) for size in sizes]
    plan = make_plan(pairs, order, backbone.image_size, final_epochs, seed)
    if plan is None:
        return None
    try:
        backbone.serve(plan.all)
    except UserError as error:
        raise UserError(error.problem, option="train_sizes", choices=error.choices) from error
    return plan


def geometry_after(geometry: Geometry, plan: SizePlan | None) -> Geometry:
    """What a model's config.json says when it was trained by a plan: the sizes that its weights are for together."""
    return geometry if plan is None else replace(geometry, image_sizes=plan.together)


def resized_for_step(module: Any, images: Tensor) -> Tensor:
    """Images of a loader that knows no sizes, (b, c, H, W), normalised, at the size of the present step."""
    trainer = module.trainer
    steps = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
    size = module.size_plan.at(module.global_step, module.run_steps, steps)
    if tuple(images.shape[-2:]) == size:
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return F.interpolate(images, size, mode="bilinear", antialias=True)
