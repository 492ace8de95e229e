"""Optimizers: SGD as in the MLP-Mixer paper's fine-tuning (arXiv 2105.01601, section 3 and appendix C), and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mixer_finetune.errors import UserError
from mixer_finetune.training.layers import matrices
from mixer_finetune.training.muon import MuonAdamW

OPTIMIZERS = ("sgd", "adamw", "muon")


def parameter_groups(
    model: nn.Module, weight_decay: float | None, rates: Callable[[str], float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: those of one rate, weight matrices, which decay, before all else, which does not.

    Biases, norms and affine scales are told by what they are (anything but the weight of a linear or convolution), not
    by their number of dimensions: ResMLP's affine scales are (1, 1, C) and must not decay either.

    Args:
        model: Whose parameters.
        weight_decay: Of the matrices; None for the optimizer's own.
        rates: The factor on the learning rate, by a parameter's name; noted in its group as `lr_factor`.

    Raises:
        UserError: Nothing is trainable.
    """
    decay = matrices(model)
    sorted_out: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (-(rates(name) if rates else 1.0), id(parameter) not in decay)
            sorted_out.setdefault(key, []).append(parameter)
    if not sorted_out:
        raise UserError("nothing is left to train: every parameter is frozen")
    groups: list[dict[str, Any]] = []
    for (rate, spared), parameters in sorted(sorted_out.items(), key=lambda item: item[0]):
        group: dict[str, Any] = {"params": parameters, "lr_factor": -rate}
        if spared or weight_decay is not None:
            group["weight_decay"] = 0.0 if spared else weight_decay
        groups.append(group)
    return groups


def build_optimizer(
    model: nn.Module,
    optimizer: str | OptimizerCallable,
    lr: float,
    momentum: float,
    weight_decay: float,
    rates: Callable[[str], float] | None = None,
) -> Optimizer:
    """The optimizer over a model's trainable parameters.

    Args:
        model: Whose parameters.
        optimizer: "sgd" (with momentum, the paper's choice for fine-tuning), "adamw", "muon" (for the matrices of the
            blocks, AdamW for the rest), or what makes an optimizer of parameter groups, with options of its own.
        lr: Of the named ones.
        momentum: Of "sgd" and "muon".
        weight_decay: Of the named ones.
        rates: The factor on the learning rate, by a parameter's name.
    """
    made: Optimizer
    if callable(optimizer):
        made = optimizer(parameter_groups(model, None, rates))
    else:
        groups = parameter_groups(model, weight_decay, rates)
        if optimizer == "sgd":
            made = SGD(groups, lr=lr, momentum=momentum)
        elif optimizer == "adamw":
            made = AdamW(groups, lr=lr)
        else:
            made = MuonAdamW(*_for_muon(model, groups), lr=lr, momentum=momentum)
    for group in made.param_groups:
        group["lr"] *= group["lr_factor"]
    return made


def _for_muon(model: nn.Module, groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups in two: the blocks' matrices, and all else (embedding, head, biases, norms), which Muon is not for."""
    weights = matrices(model)
    inner = {id(p) for name, p in model.named_parameters() if ".blocks." in f".{name}" and id(p) in weights}
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for group in groups:
        for part, inside in zip(parts, (True, False), strict=True):
            if chosen := [p for p in group["params"] if (id(p) in inner and p.ndim == 2) is inside]:
                part.append({**group, "params": chosen})
    return parts
