"""MixerClassifier: a Mixer backbone under a head, as a LightningModule."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import model_config
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.preprocessing import Preprocessing
from mixer_finetune.data.batches import Batch
from mixer_finetune.errors import NoImagesError, UserError
from mixer_finetune.training.head import choose_head
from mixer_finetune.training.log import TrainingLog
from mixer_finetune.training.measuring import Answers, SplitMetrics
from mixer_finetune.training.optimization import (
    WarmupCosine,
    build_optimizer,
    check_ranges,
    drop_path_factors,
    schedule_config,
)
from mixer_finetune.training.task import SINGLE_LABEL, Task

log = logging.getLogger(__name__)


class MixerClassifier(pl.LightningModule):
    """Fine-tunes a Mixer backbone with cross-entropy, by SGD or AdamW, with linear warm-up and cosine decay by steps.

    It trains on batches of (images, labels), normalised for its backbone, from any DataLoader. From an ImageDataModule
    it takes the names of the classes, too.

    Args:
        backbone: Hub id (timm/mixer_b16_224.goog_in21k), model folder, run folder, checkpoint, the bundled
            `mixer_nano`, an architecture's name for fresh weights, or from Python a Backbone.
        num_classes: Classes of the data, where it does not name them; the backbone's own when not given.
        label_names: Names of the classes; those of an ImageDataModule when not given. The backbone's trained head is
            kept only if it was trained for these very names.
        image_size: Side, or [height, width], of the input in pixels; the backbone's own when not given.
        patch_size: Side of the patches in pixels; the backbone's own when not given.
        in_chans: Channels of the input: 1 (grey), 3 (RGB) or 4 (RGBA); the backbone's own when not given.
        resize: How trained weights are brought to another number of tokens: interpolate, block_diagonal (the paper's,
            for whole multiples), features, patch (keep the tokens, resize the patches), or auto.
        revision: Branch, tag or commit of a Hub backbone.
        freeze_backbone: Train the head alone (a linear probe).
        drop_path: Probability that an image skips a branch of the last block (stochastic depth); linear over depth.
        label_smoothing: Share of the target spread evenly over the classes.
        optimizer: "sgd", "adamw", or a class of torch.optim with its own options (--model.optimizer Adam
            --model.optimizer.lr 0.001), which then holds in place of `lr`, `momentum` and `weight_decay`.
        lr_scheduler: A class of torch.optim.lr_scheduler, stepped once an epoch; linear warm-up and cosine decay by
            steps when not given.
        lr: Highest learning rate, after the warm-up.
        momentum: Of SGD.
        weight_decay: On weight matrices; biases, norms and affine scales never decay.
        warmup_steps: Steps of linear warm-up; at most a tenth of the run.
        compile: Compile the backbone's blocks with torch.compile.
        checkpoint_activations: Compute the blocks' activations again in the backward pass: less memory, a third more
            time.
        seed: Of fresh weights and of drop path.

    Attributes:
        backbone: Images to pre-logits, (B, C).
        head: Pre-logits to logits, (B, classes).
        label_names: Names of the classes, where they are known.
        head_note: Which head it is, and why, for the user.
        test_table: After a test: (n, 2 + 2k) index, label, k most probable classes, their probabilities.

    Raises:
        UserError: The backbone can't be loaded, or an option is out of range.
    """

    # An ImageDataModule gives its batches whole, with their place in the epoch; other modules get (images, labels).
    takes_batch: ClassVar[bool] = True
    task: ClassVar[Task] = SINGLE_LABEL
    head: nn.Module
    label_names: list[str] | None

    def __init__(
        self,
        backbone: str | Path | Backbone = "mixer_nano",
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        in_chans: int | None = None,
        resize: str = "auto",
        revision: str | None = None,
        freeze_backbone: bool = False,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        optimizer: Literal["sgd", "adamw"] | OptimizerCallable = "sgd",
        lr_scheduler: LRSchedulerCallable | None = None,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        compile: bool = False,
        checkpoint_activations: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_ranges(optimizer, momentum, label_smoothing, drop_path, lr=lr, wd=weight_decay, warmup_steps=warmup_steps)
        if label_names is not None and num_classes not in (None, len(label_names)):
            problem = f"num_classes is {num_classes}, but label_names names {len(label_names)}"
            raise UserError(problem, option="num_classes")
        if not isinstance(backbone, Backbone):
            backbone = load_backbone(
                backbone,
                image_size=image_size,
                patch_size=patch_size,
                in_chans=in_chans,
                resize=resize,
                revision=revision,
                seed=seed,
            )
        # What a checkpoint restores and a logger shows: plain values. Weights are in the state; functions can't be
        # saved.
        self.save_hyperparameters(ignore=["backbone", "optimizer", "lr_scheduler"])
        self.hparams["backbone"] = backbone.origin["source"]
        self.hparams["optimizer"] = optimizer if isinstance(optimizer, str) else "custom"
        self._hparams_initial = copy.deepcopy(self.hparams)
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler

        self.backbone = backbone
        self._put_head(num_classes, label_names)
        if freeze_backbone:
            self.backbone.requires_grad_(False)
        self.backbone.checkpoint_activations = checkpoint_activations
        if compile:
            self.backbone.compile_blocks()

        self.answers = Answers(self.task)
        self.test_table: Tensor | None = None
        self._log = TrainingLog()

    # Model

    @property
    def _options(self) -> Any:
        """What it was made with, by name."""
        return self.hparams

    @property
    def preprocessing(self) -> Preprocessing:
        """How images must be prepared for the backbone."""
        return self.backbone.preprocessing

    def assembled(self) -> Backbone:
        """Backbone and head as one model, in timm's form, with the pre-processing that it is evaluated with."""
        whole = self.backbone.with_head(self.head)
        whole.label_names = self.label_names
        whole.preprocessing = getattr(self._datamodule, "preprocessing", None) or self.preprocessing
        return whole

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

    def _put_head(self, classes: int | None, label_names: list[str] | None) -> None:
        """Take the head for those classes, and make metrics for it."""
        whole = self.backbone.with_head(self.head) if hasattr(self, "head") else self.backbone
        head = choose_head(whole, classes, label_names)
        self.backbone, self.head = whole.with_head(nn.Identity()), head.module
        self.label_names, self.head_note = head.label_names, head.note
        self.hparams["label_names"] = label_names
        count = whole.with_head(head.module).num_classes
        self.dev, self.test = (SplitMetrics(self.task, count, prefix) for prefix in ("val/", "test/"))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, c, S, T), normalised, to logits (B, classes); `keep` as in Backbone."""
        logits: Tensor = self.head(self.backbone(images.to(self.dtype), keep))  # not float32 in 64-true and bf16-true
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    # Training

    def training_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The share of the global batch's mean loss that this micro-batch contributes."""
        images, targets = batch[0], batch[1]
        logits = self(images, self._drop_path(batch, batch_idx))  # (b, classes)
        total = self.task.loss(logits, targets, self._options.label_smoothing)
        self._log.step(self, total, self.task.right(logits, targets), len(images), batch_idx)
        if not isinstance(batch, Batch):
            return total / len(images)
        # Lightning averages over devices and micro-batches; scaled so, that average is the global batch's mean.
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return total * (shares / batch.global_size)

    def _drop_path(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        """Factors on what each branch adds, (blocks, 2, b), a function of the images' positions in the global batch."""
        options, count = self._options, len(batch[0])
        if not options.drop_path or options.freeze_backbone:
            return None
        first = batch.first if isinstance(batch, Batch) else 0
        if not isinstance(batch, Batch):  # as if all micro-batches had that many images
            turn = batch_idx % self.trainer.accumulate_grad_batches
            first = (turn * self.trainer.world_size + self.trainer.global_rank) * count
        blocks, positions = len(self.backbone.blocks), first + np.arange(count)
        dtype = next(self.backbone.parameters()).dtype
        return drop_path_factors(
            options.drop_path, blocks, options.seed, self.global_step, positions, batch[0].device, dtype
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a run that has diverged.

        Raises:
            UserError: It has.
        """
        if self.diverged:
            problem = f"the loss is not finite at step {self.global_step} with lr {self._options.lr:g}"
            raise UserError(problem, advice="lower {lr} or raise {warmup_steps}")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self._log.end_epoch(self)

    @property
    def logged(self) -> bool:
        """Whether the last training step logged, for callbacks."""
        return self._log.logged

    @property
    def diverged(self) -> bool:
        """Whether the last training step has logged a loss that is no number any more."""
        return self._log.diverged(self.trainer)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and its schedule."""
        options = self._options
        optimizer = build_optimizer(self, self._optimizer, options.lr, options.momentum, options.weight_decay)
        if self._lr_scheduler is not None:
            return schedule_config(optimizer, self._lr_scheduler)
        schedule = WarmupCosine(optimizer, options.warmup_steps, self.run_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Take the run as it is now: Lightning's finders change rate and batch size after the schedule was made."""
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupCosine):
                config.scheduler.adjust(self._options.lr if isinstance(self._optimizer, str) else None, self.run_steps)
        # A run of few steps would show nothing.
        trainer: Any = self.trainer
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, self.run_steps // 10))

    @property
    def run_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            UserError: It has no end.
        """
        # Lightning's own count would iterate the loader before a resumed run knows where it is.
        steps = getattr(self._datamodule, "total_steps", None) or self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError("the run has no end", advice="set {trainer.max_epochs} or {trainer.max_steps}")
        return int(steps)

    # Evaluation

    def validation_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the dev metrics."""
        if len(batch[0]):  # else none of its images could be decoded
            self.dev.update(self(batch[0]), batch[1])

    def on_validation_epoch_start(self) -> None:
        """Show the training's means beside the dev metrics that are to come."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._log.begin_validation(self)

    def on_validation_epoch_end(self) -> None:
        """Log dev metrics and loss, over the whole split and all devices."""
        self.log_dict(self._measured(self.dev, "dev"))

    def test_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update the test metrics and the table of answers."""
        if len(batch[0]):
            logits = self(batch[0])  # (b, classes)
            self.test.update(logits, batch[1])
            self.answers.update(logits, batch[1], batch.indices if isinstance(batch, Batch) else None)

    def on_test_epoch_end(self) -> None:
        """Log test metrics and loss and keep the answers, over the whole split and all devices."""
        self.log_dict(self._measured(self.test, "evaluated"))
        self.test_table = self.answers.compute()

    def _measured(self, metrics: SplitMetrics, split: str) -> dict[str, Tensor]:
        everywhere = self.trainer.strategy.reduce(torch.tensor(metrics.batches, device=self.device), reduce_op="sum")
        if not self.trainer.sanity_checking and not everywhere:
            problem = f"no image of the {split} split could be decoded"
            raise NoImagesError(problem, advice="look at them, or change {data.source}")
        return metrics.compute()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Images, alone or first in the batch, to the probability of each class, (b, classes)."""
        return self.task.probabilities(self(batch if isinstance(batch, Tensor) else batch[0]))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained: `load_backbone` reads it without anything else."""
        checkpoint["model_config"] = model_config(self.assembled(), self.label_names)
        checkpoint["training_log"] = self._log.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the loss and accuracy that were being gathered."""
        if "training_log" in checkpoint:  # not in a checkpoint of weights alone
            self._log.load_state_dict(checkpoint["training_log"], self.device)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> MixerClassifier:
        """The classifier that a checkpoint holds: backbone, classes and options, without what it was trained from.

        Args:
            checkpoint_path: A file.
            *args: As LightningModule.load_from_checkpoint.
            **kwargs: As LightningModule.load_from_checkpoint.
        """
        given = "backbone" in kwargs
        kwargs.setdefault("backbone", load_backbone(checkpoint_path))
        module: MixerClassifier = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        if not given:  # it was made from what the checkpoint was made from
            module.hparams["backbone"] = load_checkpoint(Path(checkpoint_path))["hyper_parameters"]["backbone"]
        return module
