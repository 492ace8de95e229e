"""Backbone and head of a classifier, fitted to the classes and the task of the data."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mixer_finetune.backbones.adapters import merged_copy
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.data.sizes import SizePlan
from mixer_finetune.errors import UserError
from mixer_finetune.training.evaluating import EvaluatedModule
from mixer_finetune.training.head import choose_head
from mixer_finetune.training.losses import Loss
from mixer_finetune.training.sizes import geometry_after
from mixer_finetune.training.task import TASKS

log = logging.getLogger(__name__)


class HeadedModule(EvaluatedModule):
    """A backbone and a head, apart from each other, as a LightningModule that knows nothing of training.

    Attributes:
        backbone: Images to pre-logits, (B, C).
        head: Pre-logits to logits, (B, classes).
        label_names: Names of the classes, where they are known.
        head_note: Which head it is, and why, for the user.
        size_plan: Sizes of training images, where there are several.
    """

    backbone: Backbone
    head: nn.Module
    label_names: list[str] | None
    head_note: str
    size_plan: SizePlan | None
    _trained_task: str

    @property
    def _options(self) -> Any:
        """What it was made with, by name."""
        return self.hparams

    @property
    def preprocessing(self) -> Preprocessing:
        """How images must be prepared for the backbone."""
        return self.backbone.preprocessing

    def assembled(self, merged: bool = True) -> Backbone:
        """Backbone and head as one model, in timm's form, with the pre-processing that it is evaluated with.

        Args:
            merged: Whether adapters are merged into plain weights, in a copy.
        """
        whole = self.backbone.with_head(self.head)
        whole.label_names, whole.task = self.label_names, self.task.name
        whole.preprocessing = getattr(self._datamodule, "preprocessing", None) or self.preprocessing
        whole.geometry = geometry_after(whole.geometry, self.size_plan)
        return merged_copy(whole) if merged else whole

    @property
    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Fit the head before callbacks copy the model, as Lightning's averages do in their setup."""
        if self._trainer is not None and getattr(self._datamodule, "label_names", None) is not None:
            self.configure_model()
        return []

    def configure_model(self) -> None:
        """Fit the head to the classes that the data names.

        Raises:
            UserError: The model was made for other classes, or nobody says how many there are.
        """
        names, options = getattr(self._datamodule, "label_names", None), self._options
        if (task := getattr(self._datamodule, "task", None)) is not None:
            self.take_task(task)
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if names is None:
            if fitting and options.label_names is None and options.num_classes is None:
                raise UserError("the data names no classes", advice="give {num_classes} or {label_names}")
        elif fitting and options.label_names is None:
            if options.num_classes not in (None, len(names)):
                problem = f"the model is for {options.num_classes} classes, but the data has {len(names)}"
                raise UserError(problem, advice="leave {num_classes} out")
            self._put_head(len(names), list(names))
        elif self.label_names is None:
            raise UserError("the model does not know the names of its classes", advice="give {label_names}")
        elif list(names) != self.label_names:
            if note := self._datamodule.match_classes(self.label_names):
                log.info(note)

    def take_task(self, task: str) -> None:
        """Train for what the data asks of an image.

        Args:
            task: "single_label" or "multi_label".

        Raises:
            UserError: The model was made for another task, or is not being trained.
        """
        if task == self.task.name:
            return
        trained = self._trainer is not None and self._trainer.state.fn != "fit"
        if trained:
            problem = f"the model is {self.task.name}, but the data is {task}"
            raise UserError(problem, advice="see {label_separator}, or choose another {data.source}")
        if self._options.task is not None:
            raise UserError(f"the model is {self.task.name}, but the data is {task}", option="task", choices=task)
        self._ask(task)
        self.make_metrics(self.backbone.with_head(self.head).num_classes)

    def check_trained_task(self) -> None:
        """Refuse to have the head answer what it was not trained for.

        Raises:
            UserError: Another task was asked for than that of the weights.
        """
        if self.task.name != self._trained_task:
            problem = f"the model was trained for {self._trained_task}, not for {self.task.name}"
            raise UserError(problem, advice="leave out {task}")

    def _ask(self, task: str) -> None:
        self.task = TASKS[task]
        self.criterion = Loss(self.task)

    def _put_head(self, classes: int | None, label_names: list[str] | None) -> None:
        """Take the head for those classes, and make metrics for it."""
        whole = self.backbone.with_head(self.head) if hasattr(self, "head") else self.backbone
        named = label_names is not None or classes is not None  # else it isn't known yet which head is wanted
        head = choose_head(whole, classes, label_names, self._options.head if named else "auto")
        self.backbone, self.head = whole.with_head(nn.Identity()), head.module
        self.label_names, self.head_note = head.label_names, head.note
        self.hparams["label_names"] = label_names
        self.make_metrics(whole.with_head(head.module).num_classes)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, c, S, T), normalised, or features (B, C), to logits (B, classes); `keep` as in Backbone."""
        features = images.to(self.dtype)  # not float32 in 64-true and bf16-true
        if images.ndim != 2:
            features = self.backbone(features, keep)
        elif any(p.requires_grad for p in self.backbone.parameters()):
            raise UserError("the backbone was thawed while its features were cached; leave out what thaws it")
        logits: Tensor = self.head(features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
