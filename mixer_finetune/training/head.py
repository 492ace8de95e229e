"""Which head a backbone gets for the classes of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.errors import UserError
from mixer_finetune.training.class_rows import ClassRows, plain

HeadName = Literal["auto", "keep", "new", "probe", "names"]


@dataclass(frozen=True)
class Head:
    """A head, and why it is this one.

    Attributes:
        module: Pre-logits (B, C) to logits (B, classes).
        label_names: Names of its classes, where they are known.
        note: Which head it is, in a few words for the user.
    """

    module: nn.Module
    label_names: list[str] | None
    note: str


def choose_head(
    backbone: Backbone, classes: int | None, label_names: list[str] | None, head: HeadName = "auto"
) -> Head:
    """The head for the classes of the data.

    Args:
        backbone: With the head that it was loaded with.
        classes: Of the data; as many as there are names, or the head's own, when None.
        label_names: Names of the classes; None takes the head's for granted.
        head: auto keeps the trained head if it was trained for these very classes, in this order, and else gives a new
            one. keep takes the trained head's rows by the classes' names, and refuses others. names takes the rows of
            the classes that it knows, and starts the others from zero. new and probe give a new, zero-initialised head
            (a probe's weights are computed when the data is there).

    Raises:
        UserError: Fewer than two classes, or the trained head does not know what was asked of it.
    """
    if classes is None:
        classes = backbone.num_classes if label_names is None else len(label_names)
    if classes < 2:
        raise UserError(
            f"a classifier needs at least 2 classes, got {classes}", advice="check the labels or {num_classes}"
        )
    if head in ("keep", "names"):
        return _rows_by_name(backbone, classes, label_names, head)
    same = classes == backbone.num_classes and label_names in (None, backbone.label_names)
    fresh = backbone.origin["weights"] == "fresh"
    if head == "auto" and same and not fresh:
        if label_names is None:
            return Head(backbone.head, backbone.label_names, f"head of {classes} classes")
        return Head(backbone.head, label_names, f"trained head kept: its {classes} label names are the data's")
    if fresh:
        note = f"fresh weights, new head of {classes} classes"
    else:
        why = "its label names are not the data's" if backbone.label_names else "no trained head for these classes"
        note = f"new zero-initialised head of {classes} classes ({why if head == 'auto' else 'asked for'})"
    return Head(_new_head(backbone, classes), label_names, note)


def check_head(head: str) -> None:
    """Refuse what is no choice of a head.

    Raises:
        UserError: It is none.
    """
    if head not in get_args(HeadName):
        raise UserError(f"there is no head '{head}'", option="head", choices=", ".join(get_args(HeadName)))


def _new_head(backbone: Backbone, classes: int) -> nn.Linear:
    new = backbone.with_head(nn.Identity())
    new.replace_head(classes)
    assert isinstance(new.head, nn.Linear)
    return new.head


def _rows_by_name(backbone: Backbone, classes: int, label_names: list[str] | None, head: HeadName) -> Head:
    known, trained = backbone.label_names, backbone.head
    if backbone.origin["weights"] == "fresh" or not isinstance(trained, nn.Linear):
        raise UserError("the backbone has no trained head", option="head", choices="new or probe")
    if head == "keep" and label_names in (None, known) and classes == backbone.num_classes:
        return Head(trained, label_names or known, f"trained head kept, with its {classes} classes")
    if known is None or label_names is None:
        whose = "the backbone's head" if known is None else "the data"
        raise UserError(f"the classes of {whose} have no names to go by", option="head", choices="new or probe")
    rows = ClassRows(known)
    found = {name: rows.find(name) for name in label_names}
    taken = {name: candidates[0] for name, candidates in found.items() if len(candidates) == 1}
    missing = [name for name in label_names if name not in taken]
    if not taken or (head == "keep" and missing):
        problem = f"the trained head of {len(known):,} classes ({_some(known)}) does not know {_some(missing)}"
        raise UserError(problem, option="head", choices="names, new or probe" if taken else "new or probe")
    new = _new_head(backbone, classes)
    with torch.no_grad():
        for i, name in enumerate(label_names):
            if name in taken:
                new.weight[i], new.bias[i] = trained.weight[taken[name]], trained.bias[taken[name]]
    shown = [name if plain(name) == plain(known[row]) else f'{name} = "{known[row]}"' for name, row in taken.items()]
    left = [f"{name}: {len(found[name])} rows" if found[name] else name for name in missing]
    note = f"head of {classes} classes, {len(taken)} of them from the trained head's rows by name ({_some(shown)})"
    return Head(new, label_names, note + (f", {len(missing)} new ({_some(left)})" if missing else ""))


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
