"""MixerClassifier: a Mixer backbone as a LightningModule. Loss, metrics and optimizer, nothing else."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import CatMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mixer_finetune.backbones.folder import model_config
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.batches import Batch
from mixer_finetune.errors import NoImagesError, UserError
from mixer_finetune.training.metrics import MacroF1
from mixer_finetune.training.optimization import build_optimizer, drop_path_factors, warmup_cosine

TOP_K = 5


class MixerClassifier(pl.LightningModule):
    """Fine-tunes a Mixer backbone with cross-entropy, by SGD or AdamW, with linear warm-up and cosine decay by steps.

    Args:
        backbone: Hub id (timm/mixer_b16_224.goog_in21k), model folder, run folder, checkpoint, the bundled `mixer_nano`, or an
            architecture's name for fresh weights.
        num_classes: Classes of the data; with the command line it is taken from the data. The backbone's own when not given.
        label_names: Names of the classes; the backbone's trained head is kept only if it was trained for these very names.
        image_size: Side, or [height, width], of the input in pixels; the backbone's own when not given.
        patch_size: Side of the patches in pixels; the backbone's own when not given.
        in_chans: Channels of the input: 1 (grey), 3 (RGB) or 4 (RGBA); the backbone's own when not given.
        resize: How trained weights are brought to another number of tokens: interpolate, block_diagonal (the paper's, for whole
            multiples), features, patch (keep the tokens, resize the patches), or auto.
        revision: Branch, tag or commit of a Hub backbone.
        freeze_backbone: Train the head alone (a linear probe).
        drop_path: Probability that an image skips a branch of the last block (stochastic depth); linear over depth.
        label_smoothing: Share of the target spread evenly over the classes.
        optimizer: "sgd" or "adamw".
        lr: Highest learning rate, after the warm-up.
        momentum: Of SGD.
        weight_decay: On weight matrices; biases, norms and affine scales never decay.
        warmup_steps: Steps of linear warm-up.
        compile: Compile the backbone's blocks with torch.compile.
        checkpoint_activations: Compute the blocks' activations again in the backward pass: less memory, a third more time.
        seed: Of fresh weights and of drop path.

    Raises:
        UserError: The backbone can't be loaded, or an option is out of range.
    """

    def __init__(
        self,
        backbone: str = "mixer_nano",
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
        optimizer: str = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        compile: bool = False,
        checkpoint_activations: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adamw"):
            raise UserError(f"--model.optimizer must be sgd or adamw, got '{optimizer}'")
        for name, value in (("drop_path", drop_path), ("label_smoothing", label_smoothing)):
            if not 0 <= value < 1:
                raise UserError(f"--model.{name} must be at least 0 and below 1, got {value}")
        if not 0 <= momentum < 1:
            raise UserError(f"--model.momentum must be at least 0 and below 1, got {momentum}")
        if label_names is not None and num_classes not in (None, len(label_names)):
            raise UserError(f"num_classes is {num_classes}, but label_names names {len(label_names)}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            if not 0 <= value < float("inf"):
                raise UserError(f"--model.{name} must be 0 or more, got {value}")
        self.optimizer_options = {"name": optimizer, "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.warmup_steps, self.label_smoothing = warmup_steps, label_smoothing
        self.freeze_backbone, self.drop_path, self.seed = freeze_backbone, drop_path, seed

        self.backbone = load_backbone(
            backbone,
            num_classes=num_classes if label_names is None else len(label_names),
            image_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            resize=resize,
            revision=revision,
            seed=seed,
        )
        self.label_names = label_names or self.backbone.label_names
        self.head_note = self._fit_head(label_names)
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.head.requires_grad_(True)
        self.backbone.checkpoint_activations = checkpoint_activations
        if compile:
            self.backbone.compile_blocks()

        classes = self.backbone.num_classes
        if classes < 2:
            raise UserError(f"a classifier needs at least 2 classes, got {classes}; check the labels or --model.num_classes")
        measured: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "macro_f1": MacroF1(classes),
        }
        if classes > TOP_K:  # else every answer is among them
            measured["top5_accuracy"] = MulticlassAccuracy(classes, average="micro", top_k=TOP_K)
        metrics = MetricCollection(measured, compute_groups=False)
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        # One row an image: its index, its label, its top classes, their probabilities (which may be NaN).
        self.predictions = CatMetric(nan_strategy="disable")
        self.test_table: Tensor | None = None
        self._window = _Window()
        # Whether the last training step logged, for callbacks.
        self.logged = False

    @property
    def preprocessing(self):
        """How images must be prepared for the backbone."""
        return self.backbone.preprocessing

    def _fit_head(self, label_names: list[str] | None) -> str:
        """Keep the trained head only if it was trained for these label names; say which, either way."""
        backbone = self.backbone
        if backbone.origin["weights"] == "fresh":
            return f"fresh weights, new head of {backbone.num_classes} classes"
        if label_names is None:
            return f"head of {backbone.num_classes} classes"
        if backbone.label_names == label_names:
            return f"trained head kept: its {len(label_names)} label names are the data's"
        why = "its label names are not the data's" if backbone.label_names else "no trained head for this number of classes"
        backbone.replace_head(len(label_names))
        backbone.label_names = None
        return f"new zero-initialised head of {len(label_names)} classes ({why})"

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, c, S, T), normalised, to logits (B, classes)."""
        return self.backbone(images.to(self.dtype))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The share of the global batch's mean cross-entropy that this micro-batch contributes."""
        keep, images = None, batch.images.to(self.dtype)  # not float32 in 64-true and bf16-true
        if self.drop_path:
            positions = batch.first + np.arange(len(batch.indices))
            blocks = len(self.backbone.blocks)
            keep = drop_path_factors(self.drop_path, blocks, self.seed, self.global_step, positions, images)
        if self.freeze_backbone:
            with torch.no_grad():
                features = self.backbone.forward_pre_logits(images)
            logits = self.backbone.head(features)
        else:
            logits = self.backbone(images, keep)  # (b, classes)
        total = F.cross_entropy(_at_least_float32(logits), batch.labels, label_smoothing=self.label_smoothing, reduction="sum")
        self._window.add(total, logits, batch.labels)
        self.logged = self._log_is_due(batch_idx)
        if self.logged:  # nothing else of a step waits for the device
            values = {**self._window.drain(), "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
            self.log_dict({f"train/{key}": value for key, value in values.items()}, sync_dist=self.trainer.world_size > 1)
        # Lightning averages over devices and micro-batches; scaled so, that average is the global batch's mean.
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return total * (shares / batch.global_size)

    def _log_is_due(self, batch_idx: int) -> bool:
        """Whether this micro-batch ends a step that logs: each `log_every_n_steps`-th, the last of an epoch and of the run."""
        trainer, step = self.trainer, self.global_step + 1
        ends_step = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every = trainer.log_every_n_steps
        return ends_step and (trainer.is_last_batch or (every and step % every == 0) or step == trainer.max_steps)

    @property
    def diverged(self) -> bool:
        """Whether the step has logged a loss that is no number any more; the same on all devices."""
        return self.logged and not math.isfinite(float(self.trainer.callback_metrics["train/loss"]))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop a run that has diverged.

        Raises:
            UserError: It has.
        """
        if self.diverged:
            raise UserError(
                f"the loss is not finite at step {self.global_step}: lower --model.lr ({self.optimizer_options['lr']:g}) or "
                "raise --model.warmup_steps"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the dev metrics."""
        if not len(batch.labels):  # none of its images could be decoded
            return
        self.val_metrics.update(_at_least_float32(self(batch.images)), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the dev metrics, over the whole split and all devices.

        Raises:
            NoImagesError: There is nothing to measure.
        """
        self._require_updates(self.val_metrics, "dev")
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def _require_updates(self, metrics: MetricCollection, split: str) -> None:
        own = sum(metric.update_count for metric in metrics.values(copy_state=False))
        if not self.trainer.sanity_checking and not self.trainer.strategy.reduce(
            torch.tensor(own, device=self.device), reduce_op="sum"
        ):
            raise NoImagesError(f"no image of the {split} split could be decoded: look at them, or change --data.source")

    def on_test_epoch_start(self) -> None:
        """Keep indices exact in the table of predictions, which is given the model's type in bf16-true."""
        self.predictions.set_dtype(torch.float32)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics and the table of predictions."""
        if not len(batch.labels):
            return
        logits = _at_least_float32(self(batch.images))  # (b, classes)
        self.test_metrics.update(logits, batch.labels)
        top = logits.softmax(-1).topk(min(TOP_K, logits.shape[-1]))
        index = torch.from_numpy(batch.indices).to(logits.device)
        row = [index[:, None], batch.labels[:, None], top.indices, top.values]
        self.predictions.update(torch.cat([part.float() for part in row], dim=1))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and keep the predictions, over the whole split and all devices.

        Raises:
            NoImagesError: There is nothing to measure.
        """
        self._require_updates(self.test_metrics, "evaluated")
        self.log_dict(self.test_metrics.compute())
        self.test_table = self.predictions.compute().cpu()
        self.test_metrics.reset()
        self.predictions.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and warm-up and cosine decay by steps."""
        optimizer = build_optimizer(self, **self.optimizer_options)  # type: ignore[arg-type]
        total = self.trainer.datamodule.total_steps  # type: ignore[attr-defined]
        if self.warmup_steps >= total:
            raise UserError(
                f"--model.warmup_steps {self.warmup_steps} leaves nothing of the run's {total} steps; lower it or train longer"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, self.warmup_steps, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained: `load_backbone` reads it without anything else."""
        checkpoint["model_config"] = model_config(self.backbone, self.label_names)
        checkpoint["window"] = self._window.sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the loss and accuracy that were being gathered."""
        if checkpoint["window"] is not None:
            self._window.sums = checkpoint["window"].to(self.device)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Window:
    """Loss and accuracy over the steps since the last log, kept on the device."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, total_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            correct = (logits.argmax(-1) == labels).sum()
            sums = torch.stack([total_loss.detach(), correct, torch.full_like(correct, len(labels))])
            self.sums = sums if self.sums is None else self.sums + sums

    def drain(self) -> dict[str, Tensor]:
        assert self.sums is not None
        (loss, correct, count), self.sums = self.sums.unbind(), None
        return {"loss": loss / count, "accuracy": correct / count}
