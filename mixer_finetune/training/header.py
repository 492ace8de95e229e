"""The lines that head a run: what is trained, on what, in how many steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import tagged


def header(trainer: pl.Trainer, model: Any, precision_note: str | None) -> list[str]:
    """The lines.

    Args:
        trainer: That is about to train.
        model: The MixerClassifier.
        precision_note: About float32 products.
    """
    backbone: Backbone = model.backbone
    origin = backbone.origin
    revision = f" @ {origin['revision'][:12]}" if origin.get("revision") else ""
    lines = [f"backbone   {origin['source']}{revision}: {backbone.architecture}, {_size(backbone)}; {model.head_note}"]
    found = tagged(origin["source"])
    if found and found[1].warning:
        lines.append(f"warning    {origin['source']}: {found[1].warning}")
    data = getattr(trainer, "datamodule", None)
    if description := getattr(data, "description", None):
        lines.append(f"data       {description}")
    lines.append(f"training   {_training(trainer, model, data)}")
    lines.append(f"device     {_device(trainer, precision_note)}")
    if trainer.global_step:
        lines.append(f"resuming   at step {trainer.global_step:,} of {model.run_steps:,}")
    return lines


def _training(trainer: pl.Trainer, model: Any, data: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    steps = model.run_steps
    text = f"{trained:,} of {total:,} parameters, {steps:,} step{'s' if steps > 1 else ''}"
    if (plan := getattr(data, "train_batches", None)) is not None:
        share = -(-plan.n // plan.steps)
        text += f" ({_epochs(steps / plan.steps)}), {share} images a step"
        text += f" = {trainer.world_size} device(s) x {plan.accumulate} micro-batch(es)"
    for optimizer in trainer.optimizers:
        rates = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
        text += f"; {type(optimizer).__name__} with a learning rate of {' to '.join(f'{r:.3g}' for r in sorted(rates))}"
    wanted = model.hparams.warmup_steps
    for config in trainer.lr_scheduler_configs:
        taken = getattr(config.scheduler, "warmup_steps", wanted)
        if taken < wanted:
            text += f"; warm-up shortened from {wanted} to {taken} steps, a tenth of the run"
    return text


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:.3g} epochs" if number > 1 else f"{number:.0%} of an epoch"


def _device(trainer: pl.Trainer, precision_note: str | None) -> str:
    kind = trainer.accelerator.__class__.__name__.removesuffix("Accelerator")
    note = f", {precision_note}" if precision_note and trainer.strategy.root_device.type == "cpu" else ""
    return f"{kind}, precision {trainer.precision}{note}"


def _size(backbone: Backbone) -> str:
    (height, width), patch = backbone.image_size, backbone.geometry.patch_size
    rows, columns = backbone.geometry.grid
    text = f"{height} x {width} px in {rows} x {columns} patches of {patch}"
    if resized := backbone.origin.get("resized"):
        text += f", resized from {resized['from'][0]} x {resized['from'][1]} by {resized['method']}"
        text += f" (auto: {resized['why']})" if "why" in resized else ""
    return text
