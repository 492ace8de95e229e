"""Which head a backbone gets for the classes of the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.errors import UserError


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


def choose_head(backbone: Backbone, classes: int | None, label_names: list[str] | None) -> Head:
    """The backbone's trained head, if it was trained for these classes; else a new, zero-initialised one.

    Args:
        backbone: With the head that it was loaded with.
        classes: Of the data; as many as there are names, or the head's own, when None.
        label_names: Names of the classes; None takes the head's for granted.

    Raises:
        UserError: Fewer than two classes.
    """
    if classes is None:
        classes = backbone.num_classes if label_names is None else len(label_names)
    if classes < 2:
        raise UserError(
            f"a classifier needs at least 2 classes, got {classes}", advice="check the labels or {num_classes}"
        )
    same = classes == backbone.num_classes and label_names in (None, backbone.label_names)
    if same and backbone.origin["weights"] != "fresh":
        if label_names is None:
            return Head(backbone.head, backbone.label_names, f"head of {classes} classes")
        return Head(backbone.head, label_names, f"trained head kept: its {classes} label names are the data's")
    new = backbone.with_head(nn.Identity())
    new.replace_head(classes)
    if backbone.origin["weights"] == "fresh":
        note = f"fresh weights, new head of {classes} classes"
    else:
        why = "its label names are not the data's" if backbone.label_names else "no trained head for these classes"
        note = f"new zero-initialised head of {classes} classes ({why})"
    return Head(new.head, label_names, note)
