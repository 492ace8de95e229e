"""Distillation: a student learns from a teacher's answers to the very images that it is trained on.

"Knowledge distillation: a good teacher is patient and consistent" (arXiv 2106.05237) calls it function matching: the
teacher sees each image as the student does, cropped, augmented and mixed, so that its answers fit what is in the
picture. Soft targets are the teacher's probabilities at a temperature (Hinton et al., 1503.02531), hard ones its answer
as a label (DeiT, 2012.12877).

Shapes: b images, C classes of the student.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.preprocessing import Preprocessing, per_channel
from mixer_finetune.data.classes import match_classes
from mixer_finetune.errors import UserError
from mixer_finetune.training.task import Task

TeacherTargets = Literal["soft", "hard"]


class Teacher:
    """A trained model, and what a student takes from it. It is no module: no checkpoint of the student holds it.

    Args:
        backbone: With a head, frozen.
        columns: Where the student's classes are among the teacher's, (C,); None where they are the same.
        prepared: How the student's images are normalised.
        task: What is asked of an image.
        weight: Share of the loss that is the teacher's, 0 to 1.
        temperature: That both sides' logits are divided by, for soft targets.
        targets: "soft" or "hard".
        note: Which of its classes were taken, for the user; empty where all were, in their order.
    """

    def __init__(
        self,
        backbone: Backbone,
        columns: Tensor | None,
        prepared: Preprocessing,
        task: Task,
        weight: float,
        temperature: float,
        targets: TeacherTargets,
        note: str = "",
    ) -> None:
        self.backbone, self.columns, self.task, self.note = backbone.eval().requires_grad_(False), columns, task, note
        self.weight, self.temperature, self.targets = weight, temperature, targets
        # From the student's normalisation to the teacher's: x s1 + m1 is the picture, in 0..1.
        theirs = backbone.preprocessing
        self._scale = tuple(s / t for s, t in zip(prepared.std, theirs.std, strict=True))
        self._shift = tuple(
            (m - n) / t for m, n, t in zip(prepared.mean, theirs.mean, theirs.std, strict=True)
        )  # fmt: skip

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The student's images (b, c, S, T), normalised for the student, to the teacher's logits (b, C)."""
        theirs = self.backbone.preprocessing
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        if any(scale != 1 for scale in self._scale) or any(self._shift):
            images = images * per_channel(self._scale, images) + per_channel(self._shift, images)
        if tuple(images.shape[-2:]) != theirs.image_size:
            mode = "nearest-exact" if theirs.interpolation == "nearest" else theirs.interpolation
            images = F.interpolate(images, theirs.image_size, mode=mode, antialias=mode != "nearest-exact")
        logits: Tensor = self.backbone(images.to(self.backbone.stem.proj.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.columns is None else logits[:, self.columns]

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """How far a student is from the teacher, summed over the images, a scalar.

        Soft, it is the divergence of the student's probabilities from the teacher's, times the temperature squared, so
        that the gradient's size does not depend on the temperature; hard, the task's loss for the teacher's answers.

        Args:
            images: (b, c, S, T), normalised for the student.
            logits: Of the student, (b, C).
        """
        theirs = self.logits(images)
        if self.targets == "hard":
            return self.task.losses(logits, self.task.answers(theirs), 0.0).sum()
        t = self.temperature
        return self.task.divergences(logits / t, theirs / t).sum() * t**2

    def blended(self, own: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """The student's own loss and the teacher's, each by its share; sums over the images, as in `loss`."""
        return (1 - self.weight) * own + self.weight * self.loss(images, logits)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its weights, by which a resumed run knows that its teacher is the same."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_same(self, before: str | None) -> None:
        """Refuse another teacher than the one that a resumed run began with.

        Args:
            before: Its fingerprint; None for a new run.

        Raises:
            UserError: It is another one.
        """
        if before not in (None, self.fingerprint):
            problem = f"the weights of the teacher {self.backbone.origin['source']} have changed since the run began"
            raise UserError(problem, advice="bring them back, or begin anew")

    def described(self) -> str:
        """What it does, in words."""
        (height, width), shares = self.backbone.image_size, f"{self.weight:.0%} of the loss"
        soft = f"its probabilities at temperature {self.temperature:g}"
        how = soft if self.targets == "soft" else "its answers as labels"
        note = f" ({self.note})" if self.note else ""
        origin = self.backbone.origin["source"]
        return f"distilled from {origin} at {height} x {width} px: {how}, {shares}{note}"


def make_teacher(module: Any, prepared: Preprocessing, source: str | Path) -> Teacher:
    """The teacher of a MixerClassifier that is about to be trained, on its device.

    Args:
        module: With its head, and the names of its classes.
        prepared: How its images are normalised.
        source: As for `load_backbone`.

    Raises:
        UserError: There is no such model, it has no head for the student's classes, or it answers something else.
    """
    try:
        backbone = load_backbone(source, in_chans=len(prepared.mean))
    except UserError as error:
        raise UserError(f"no teacher: {error.problem}", option="teacher") from error
    columns, note = _columns(backbone, module.label_names)
    if backbone.task != module.task.name:
        problem = f"the teacher is {backbone.task}, but the student is {module.task.name}"
        raise UserError(problem, option="teacher")
    options = module.hparams
    backbone.to(module.device, module.dtype)
    if options.compile:
        backbone.compile_blocks()
    columns = None if columns is None else columns.to(module.device)
    how = options.teacher_weight, options.teacher_temperature, options.teacher_targets
    return Teacher(backbone, columns, prepared, module.task, *how, note)


def _columns(backbone: Backbone, names: list[str] | None) -> tuple[Tensor | None, str]:
    """Where classes are among a teacher's, by name, and what is said of it."""
    theirs = backbone.label_names
    if theirs is None:
        problem = "the teacher does not know the names of its classes" if backbone.num_classes else "it has no head"
        raise UserError(f"no teacher: {problem}", option="teacher", choices="a run or a model folder with label_names")
    if names is None:
        raise UserError("classes are matched to the teacher's by name, and have none", advice="give {label_names}")
    if names == theirs:
        return None, ""
    try:
        match = match_classes(names, theirs, "the data", "the teacher")
    except UserError as error:
        raise UserError(error.problem, option="teacher") from error
    if not match.absent:
        return torch.from_numpy(match.numbers), "classes matched by name"
    return torch.from_numpy(match.numbers), f"{len(names)} of its {len(theirs)} classes, by name"


def check_teacher(options: Any) -> None:
    """Refuse options of the teacher that can't be.

    Args:
        options: Of the classifier, by name.

    Raises:
        UserError: One is out of range, or says nothing.
    """
    weight, temperature, targets = (options[f"teacher_{name}"] for name in ("weight", "temperature", "targets"))
    if not 0 < weight <= 1:
        raise UserError(f"teacher_weight must be above 0 and at most 1, got {weight}", option="teacher_weight")
    if not 0 < temperature < float("inf"):
        raise UserError(f"teacher_temperature must be above 0, got {temperature}", option="teacher_temperature")
    if targets not in get_args(TeacherTargets):
        choices = " or ".join(get_args(TeacherTargets))
        raise UserError(f"unknown teacher_targets '{targets}'", option="teacher_targets", choices=choices)
    if targets == "hard" and temperature != 1:
        problem = "hard targets are the teacher's answers, which no temperature changes"
        raise UserError(problem, advice="leave out {teacher_temperature}")
