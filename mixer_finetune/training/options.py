"""Which options of a MixerClassifier can be, each alone and together. It is asked before a backbone is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixer_finetune.backbones.adapters import NAMES
from mixer_finetune.errors import UserError
from mixer_finetune.training.distillation import check_teacher
from mixer_finetune.training.head import check_head
from mixer_finetune.training.layers import check_train
from mixer_finetune.training.losses import check_loss
from mixer_finetune.training.optimization import OPTIMIZERS

_SHARES = ("momentum", "label_smoothing", "drop_path", "ema_decay")  # in [0, 1)
_NOT_NEGATIVE = ("weight_decay", "warmup_steps", "sam_rho", "unfreeze_every", "focal_gamma")
_POSITIVE = ("layer_decay", "head_lr_factor", "adapter_rank", "adapter_alpha")


def check_options(options: Mapping[str, Any], optimizer: Any, lr_scheduler: Any = None) -> None:
    """Refuse options that no training can have.

    Args:
        options: By name.
        optimizer: A name or a callable.
        lr_scheduler: A callable, or None for warm-up and cosine decay.

    Raises:
        UserError: One is out of range, or two contradict each other.
    """
    if isinstance(optimizer, str) and optimizer not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{optimizer}'", option="optimizer", choices="sgd, adamw or muon")
    lr = options["lr"]
    for name in (*_SHARES, *_NOT_NEGATIVE, *_POSITIVE, *(["lr"] if isinstance(lr, int | float) else [])):
        value = options[name]
        if name in _SHARES and not 0 <= value < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {value}", option=name)
        if name in _POSITIVE and not 0 < value < float("inf"):
            raise UserError(f"{name} must be above 0, got {value}", option=name)
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} must be 0 or more, got {value}", option=name)
    if isinstance(lr, str) and lr != "auto":
        raise UserError(f"expected a learning rate, got '{lr}'", option="lr", choices="a number or auto")
    check_teacher(options)
    check_loss(options["loss"], options["class_weights"])
    check_head(options["head"])
    check_train(options["train"])
    if options["adapter"] not in ("none", *NAMES):
        raise UserError(f"there is no adapter '{options['adapter']}'", option="adapter", choices="none, lora or dora")
    names, classes = options["label_names"], options["num_classes"]
    if names is not None and classes not in (None, len(names)):
        raise UserError(f"num_classes is {classes}, but label_names names {len(names)}", option="num_classes")
    _check_together(options, optimizer)
    if lr == "auto" and lr_scheduler is not None:
        raise UserError("the schedule of a class of its own can't take a rate that is found", advice="give {lr}")


def _check_together(options: Mapping[str, Any], optimizer: Any) -> None:
    train = options["train"]
    if options["freeze_backbone"] and train not in ("all", "head"):
        raise UserError(f"a frozen backbone trains the head alone, not {train}", advice="leave out {freeze_backbone}")
    if options["adapter"] != "none":
        _check_adapter(options["adapter"], "head" if options["freeze_backbone"] else train)
    if options["unfreeze_every"] and (train != "all" or options["freeze_backbone"]):
        raise UserError(
            "gradual unfreezing ends with everything trained, so there is nothing to choose",
            advice="leave out {unfreeze_every}",
        )
    if options["sam_adaptive"] and not options["sam_rho"]:
        raise UserError("ASAM needs the length of its perturbation", advice="give {sam_rho}, such as 1")
    if options["lr"] == "auto" and options["head"] == "probe":
        problem = "a range test finds rates for a head that has still to learn, and a probe has learnt already"
        raise UserError(problem, option="lr", choices="a number")
    if options["lr"] == "auto" and not isinstance(optimizer, str):
        raise UserError("an optimizer with options of its own has its own rate", advice="leave out {lr}")


def _check_adapter(adapter: str, train: str) -> None:
    name, choices = NAMES[adapter], "all, token-mixing, channel-mixing or last-K"
    if train == "head":
        raise UserError(f"{name} trains updates of the backbone, and the head alone is to be trained",
                        advice="leave out {adapter}, or what freezes the backbone")  # fmt: skip
    if train in ("norms-biases", "no-stem"):
        raise UserError(f"{name} is for linear maps of the blocks, not for {train}", option="train", choices=choices)
