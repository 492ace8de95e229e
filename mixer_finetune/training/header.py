"""The lines that head a run: what is trained, on what, in how many steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from mixer_finetune.backbones.adapters import NAMES, adapted_layers
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import tagged


def header(trainer: pl.Trainer, model: Any, precision_note: str | None) -> list[str]:
    """The lines.

    Args:
        trainer: That is about to train.
        model: The MixerClassifier.
        precision_note: About the precision.
    """
    backbone: Backbone = model.backbone
    origin = backbone.origin
    revision = f" @ {origin['revision'][:12]}" if origin.get("revision") else ""
    lines = [f"backbone   {origin['source']}{revision}: {backbone.architecture}, {_size(backbone)}; {model.head_note}"]
    found = tagged(origin["source"])
    if found and found[1].warning:
        lines.append(f"warning    {origin['source']}: {found[1].warning}")
    data: Any = getattr(trainer, "datamodule", None)
    if description := getattr(data, "description", None):
        lines.append(f"data       {description}")
    if str(getattr(data, "source", "")).casefold() in [name.casefold() for name in origin.get("trained_on", [])]:
        said = "the backbone was trained on this data set, by its card: dev accuracy flatters, and test accuracy may"
        lines.append(f"note       {said}")
    if (augmentation := getattr(data, "augmentation", None)) and (amounts := augmentation.described(data.repeats)):
        lines.append(f"augmented  {', '.join(amounts)}")
    lines.append(f"training   {_training(trainer, model, data)}")
    if method := _method(model, data):
        lines.append(f"method     {'; '.join(method)}")
    lines.append(f"device     {_device(trainer, precision_note)}")
    if trainer.global_step:
        lines.append(f"resuming   at step {trainer.global_step:,} of {model.run_steps:,}")
    return lines


def _training(trainer: pl.Trainer, model: Any, data: Any) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    steps = model.run_steps
    part = "" if trained == total else f" ({_percent(trained / total)})"
    text = f"{trained:,} of {total:,} parameters{part}, {steps:,} step{'s' if steps > 1 else ''}"
    if (plan := getattr(data, "train_batches", None)) is not None:
        share = -(-plan.n // plan.steps)
        text += f" ({_epochs(steps / plan.steps)}), {share} images a step"
        text += f" = {trainer.world_size} device(s) x {plan.accumulate} micro-batch(es)"
    for optimizer in trainer.optimizers:
        every = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        rates = {min(every), max(every)}
        text += f"; {type(optimizer).__name__} with a learning rate of {' to '.join(f'{r:.3g}' for r in sorted(rates))}"
    wanted = model.hparams.warmup_steps
    for config in trainer.lr_scheduler_configs:
        taken = getattr(config.scheduler, "warmup_steps", wanted)
        if taken < wanted:
            text += f"; warm-up shortened from {wanted} to {taken} steps, a tenth of the run"
    return text


def _method(model: Any, data: Any) -> list[str]:
    """What differs from plain fine-tuning, and what it costs."""
    options, said = model.hparams, []
    if model.lr_note:
        said.append(f"learning rate {model.lr_note}")
    if options.adapter != "none":
        said.append(_adapter(model))
    elif options.train != "all":
        said.append(f"trains {options.train}, and the head" if options.train != "head" else "trains the head alone")
    if model.size_plan is not None:
        said.append(model.size_plan.described())
    if model.features:
        said.append("the frozen backbone computes each image once, and the epochs go over its features")
    if options.unfreeze_every:
        layers = len(model.backbone.blocks) + 1
        said.append(f"one layer more is trained each {options.unfreeze_every} steps, all from step "
                    f"{layers * options.unfreeze_every:,}")  # fmt: skip
    if options.layer_decay != 1:
        lowest = options.layer_decay ** (len(model.backbone.blocks) + 1)
        said.append(f"rates fall by {options.layer_decay:g} a layer, to {lowest:.2g} of the head's at the stem")
    if options.head_lr_factor != 1:
        said.append(f"the head's rate is {options.head_lr_factor:g} times the backbone's")
    if options.sam_rho:
        name = "ASAM" if options.sam_adaptive else "SAM"
        said.append(f"{name} with rho {options.sam_rho:g}: each step is computed twice, for about twice the time")
    if options.ema_decay:
        said.append(f"average of the weights with decay {options.ema_decay:g}")
    if model.teacher is not None:
        said.append(model.teacher.described())
    if options.loss != "cross_entropy":
        said.append(f"{options.loss.replace('_', '-')} loss")
    if options.class_weights != "none":
        said.append("classes weigh inversely to how often they occur")
    if getattr(data, "sampling", "shuffled") == "balanced":
        plan, images = data.train_batches, len(data.splits["train"])
        said.append(f"balanced sampling: {plan.n:,} draws an epoch from {images:,} images")
    return said


def _adapter(model: Any) -> str:
    options, layers = model.hparams, adapted_layers(model.backbone)
    trained = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    where = "" if options.train == "all" else f" ({options.train})"
    return (
        f"{NAMES[options.adapter]} of rank {options.adapter_rank} and alpha {options.adapter_alpha:g} on {len(layers)} "
        f"linear maps{where}: {trained:,} parameters beside {frozen:,} frozen ones, merged when saved"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2g} of them"


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:.3g} epochs" if number > 1 else f"{number:.0%} of an epoch"


def _device(trainer: pl.Trainer, precision_note: str | None) -> str:
    kind = trainer.accelerator.__class__.__name__.removesuffix("Accelerator")
    note = f", {precision_note}" if precision_note else ""
    return f"{kind}, precision {trainer.precision}{note}"


def _size(backbone: Backbone) -> str:
    (height, width), patch = backbone.image_size, backbone.geometry.patch_size
    rows, columns = backbone.geometry.grid
    text = f"{height} x {width} px in {rows} x {columns} patches of {patch}"
    if resized := backbone.origin.get("resized"):
        text += f", resized from {resized['from'][0]} x {resized['from'][1]} by {resized['method']}"
        text += f" (auto: {resized['why']})" if "why" in resized else ""
    return text
