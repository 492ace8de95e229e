"""MixerClassifier: a Mixer backbone under a head, as a LightningModule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mixer_finetune.backbones.adapters import Adapter, check_adapter
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import model_config
from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.batches import Batch
from mixer_finetune.data.sizes import SizeOrder
from mixer_finetune.errors import UserError
from mixer_finetune.training.averages import WeightEma
from mixer_finetune.training.distillation import Teacher, TeacherTargets, make_teacher
from mixer_finetune.training.drop_path import drop_path_of
from mixer_finetune.training.features import Features, frozen_features
from mixer_finetune.training.head import HeadName
from mixer_finetune.training.headed import HeadedModule
from mixer_finetune.training.layers import Rates, adapt, choose_trained, drop_untrained_gradients
from mixer_finetune.training.log import TrainingLog
from mixer_finetune.training.losses import LossName, make_loss
from mixer_finetune.training.optimization import build_optimizer
from mixer_finetune.training.options import check_options
from mixer_finetune.training.probe import start_from_probe
from mixer_finetune.training.rate_finder import find_rate
from mixer_finetune.training.rates import recommended_rate
from mixer_finetune.training.schedule import WarmupCosine, schedule_config
from mixer_finetune.training.sharpness import Sharpness
from mixer_finetune.training.sizes import resized_for_step, take_sizes


class MixerClassifier(HeadedModule):
    """Fine-tunes a Mixer backbone: cross-entropy and SGD, unless asked otherwise, with linear warm-up and cosine decay.

    It trains on batches of (images, labels), normalised for its backbone, from any DataLoader. From an ImageDataModule
    it takes the names of the classes, too.

    Args:
        backbone: Hub id (timm/mixer_b16_224.goog_in21k), model folder, run folder, checkpoint, the bundled
            `mixer_nano`, an architecture's name for fresh weights, or from Python a Backbone.
        num_classes: Classes of the data. It must be given, or `label_names`, for training on data that does not name
            them; else the backbone's own when not given.
        label_names: Names of the classes; those of an ImageDataModule when not given. The backbone's trained head is
            kept only if it was trained for these very names.
        task: single_label (one label an image) or multi_label (none, one or several: a sigmoid for each class, targets
            (B, classes) of 0 and 1); that of the ImageDataModule, else the backbone's own, when not given.
        image_size: Side, or [height, width], of the input in pixels; the backbone's own when not given.
        patch_size: Side of the patches in pixels; the backbone's own when not given.
        in_chans: Channels of the input: 1 (grey), 3 (RGB) or 4 (RGBA); the backbone's own when not given.
        resize: How trained weights are brought to another number of tokens: interpolate, block_diagonal (the paper's,
            for whole multiples), features, patch (keep the tokens, resize the patches), or auto.
        revision: Branch, tag or commit of a Hub backbone.
        train: What is trained beside the head: all, head (nothing), last-K (the last K blocks and the final norm),
            norms-biases, token-mixing, channel-mixing, no-stem (all but the patch embedding).
        freeze_backbone: Train the head alone, as `train` head.
        adapter: lora or dora: in place of the weights that `train` chooses (all, token-mixing, channel-mixing, last-K),
            train low-rank updates of the linear maps among them; saved merged into plain weights, and on their own.
        adapter_rank: Of the updates.
        adapter_alpha: The updates are multiplied by this, divided by the rank.
        unfreeze_every: Gradual unfreezing: the head is trained first, and each that many steps one layer more, from the
            last block down to the stem; 0 trains all from the start.
        head: auto (the trained head if it is for the data's classes, else a new one), keep (the trained head, its
            classes by name), new (zero), names (rows of the trained head for the classes that it knows by name), or
            probe (a ridge regression on the training images, computed before the first step).
        drop_path: Probability that an image skips a branch of the last block (stochastic depth); linear over depth.
        label_smoothing: Share of the target spread evenly over the classes.
        loss: cross_entropy (of several labels an image, binary), binary (a sigmoid for each class), focal (hard images
            weigh more) or logit_adjusted (for unequal classes).
        focal_gamma: Exponent of the focal loss.
        class_weights: balanced weighs the loss of an image inversely to how often its class occurs; or none.
        optimizer: "sgd", "adamw", "muon" (the blocks' matrices by Muon, the rest by AdamW), or a class of torch.optim
            with its own options (--model.optimizer Adam --model.optimizer.lr 0.001), which then holds in place of `lr`,
            `momentum` and `weight_decay`.
        lr_scheduler: A class of torch.optim.lr_scheduler, stepped once an epoch; linear warm-up and cosine decay by
            steps when not given.
        lr: Highest learning rate, after the warm-up; auto finds it by a range test on the training images; the one
            recommended for backbone, optimizer and `train` when not given.
        layer_decay: Factor on the rate from each layer to the one before it: the head has the full rate, the last block
            and the final norm that times this, and so on down to the stem.
        head_lr_factor: Factor on the head's rate.
        momentum: Of SGD and Muon.
        weight_decay: On weight matrices; biases, norms and affine scales never decay.
        warmup_steps: Steps of linear warm-up; at most a tenth of the run.
        sam_rho: Length of the perturbations of SAM, often 0.05; each step is computed twice. 0 is without.
        sam_adaptive: Measure the perturbation in units of each weight (ASAM); sam_rho is then often 0.5 to 2.
        ema_decay: Keep an exponential moving average of the weights, often 0.99 to 0.9999, and measure it beside them
            on the dev split; 0 is without.
        teacher: Model to distil from, as for `backbone`, trained for the classes of the data (matched by name): each
            step it answers the very images that are trained on. Best a larger model's run folder.
        teacher_weight: Share of the loss that is the distance from the teacher, 0 to 1; the labels have the rest.
        teacher_temperature: That both sides' logits are divided by before they are compared; often 1 to 10.
        teacher_targets: soft (the teacher's probabilities) or hard (its answers, as labels).
        train_sizes: Sizes of the training images, as `image_size` takes them: the token mixing is resampled to each in
            passing, so that one set of weights serves them all. Weights are kept, and evaluated, at `image_size`.
        size_order: drawn (each batch has one of them at random) or listed (one after another, for equal parts of the
            run, such as from small to large).
        final_epochs: Epochs at the end of the run in which training images have `image_size` (FixRes).
        compile: Compile the backbone's blocks with torch.compile.
        checkpoint_activations: Compute the blocks' activations again in the backward pass: less memory, a third more
            time.
        seed: Of fresh weights and of drop path.

    Attributes:
        backbone: Images to pre-logits, (B, C).
        head: Pre-logits to logits, (B, classes).
        label_names: Names of the classes, where they are known.
        head_note: Which head it is, and why, for the user.
        size_plan: Of the training images' sizes; None where all have that of the backbone.
        lr_note: Where the learning rate is from, for the user; None where it was given.
        teacher: That it is distilled from; there while it is trained, and in no checkpoint.
        features: Of the frozen backbone, by split, where a run takes them in the place of images.

    Raises:
        UserError: The backbone can't be loaded, or an option is out of range.
    """

    # An ImageDataModule gives its batches whole, with their place in the epoch; other modules get (images, labels).
    takes_batch: ClassVar[bool] = True

    def __init__(
        self,
        backbone: str | Path | Backbone = "mixer_nano",
        num_classes: int | None = None,
        label_names: list[str] | None = None,
        task: Literal["single_label", "multi_label"] | None = None,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        in_chans: int | None = None,
        resize: str = "auto",
        revision: str | None = None,
        train: str = "all",
        freeze_backbone: bool = False,
        adapter: Literal["none", "lora", "dora"] = "none",
        adapter_rank: int = 8,
        adapter_alpha: float = 16.0,
        unfreeze_every: int = 0,
        head: HeadName = "auto",
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        loss: LossName = "cross_entropy",
        focal_gamma: float = 2.0,
        class_weights: Literal["none", "balanced"] = "none",
        optimizer: Literal["sgd", "adamw", "muon"] | OptimizerCallable = "sgd",
        lr_scheduler: LRSchedulerCallable | None = None,
        lr: float | Literal["auto"] | None = None,
        layer_decay: float = 1.0,
        head_lr_factor: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        sam_rho: float = 0.0,
        sam_adaptive: bool = False,
        ema_decay: float = 0.0,
        teacher: str | Path | None = None,
        teacher_weight: float = 0.5,
        teacher_temperature: float = 1.0,
        teacher_targets: TeacherTargets = "soft",
        train_sizes: list[int | tuple[int, int]] | None = None,
        size_order: SizeOrder = "drawn",
        final_epochs: int = 0,
        compile: bool = False,
        checkpoint_activations: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # What a checkpoint restores and a logger shows: plain values. Weights are in the state; functions can't be
        # saved.
        self.save_hyperparameters(ignore=["backbone", "optimizer", "lr_scheduler"])
        check_options(self.hparams, optimizer, lr_scheduler)
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
        self.hparams["backbone"] = backbone.origin["source"]
        self.hparams["teacher"] = None if teacher is None else str(teacher)
        self.hparams["optimizer"] = optimizer if isinstance(optimizer, str) else "custom"
        self.hparams["train"] = train = "head" if freeze_backbone else train
        self.lr_note: str | None = None
        if lr is None:
            method = train if adapter == "none" else "adapter"
            rate = recommended_rate(backbone, optimizer if isinstance(optimizer, str) else "sgd", method)
            self.hparams["lr"], self.lr_note = rate.lr, rate.note
        self.size_plan = take_sizes(backbone, train_sizes, size_order, final_epochs, seed)
        self._hparams_initial = copy.deepcopy(self.hparams)
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler

        self.backbone, self._trained_task = backbone, backbone.task
        self._ask(task or backbone.task)
        self._put_head(num_classes, label_names)
        choose_trained(self.backbone, train)
        if adapter != "none":
            adapt(self.backbone, Adapter(adapter, adapter_rank, adapter_alpha), train, seed)
        self.backbone.checkpoint_activations = checkpoint_activations
        if compile:
            self.backbone.compile_blocks()

        self._log = TrainingLog()
        self._sharpness = Sharpness(sam_rho, sam_adaptive) if sam_rho else None
        self._ema_state: dict[str, Any] | None = None
        self.teacher: Teacher | None = None
        self._teacher_before: str | None = None
        self.features: dict[str, Features] = {}

    # Training

    def training_step(self, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The share of the global batch's mean loss that this micro-batch contributes."""
        images, targets = batch[0], batch[1]
        if batch_idx == 0:
            self.task.check(targets)
        if self.size_plan is not None and not isinstance(batch, Batch):  # whose images have their size
            images = resized_for_step(self, images)
        logits = self(images, drop_path_of(self, batch, batch_idx))  # (b, classes)
        total = self.loss(images, logits, targets)
        if self._sharpness is None or not self._sharpness.again:
            self._log.step(self, total, self.task.right(logits, targets), len(images), batch_idx)
            if self._sharpness is not None:
                self._sharpness.keep(batch, batch_idx)
        if not isinstance(batch, Batch):
            return total / len(images)
        # Lightning averages over devices and micro-batches; scaled so, that average is the global batch's mean.
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return total * (shares / batch.global_size)

    def loss(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """What is minimised, summed over the images, a scalar.

        Args:
            images: (b, c, S, T), normalised.
            logits: Of these, (b, classes).
            targets: As the task has them.
        """
        own = self.criterion(logits, targets)
        return own if self.teacher is None else self.teacher.blended(own, images, logits)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, by SAM's two passes where it is asked for, and take the weights into their average."""
        if self._sharpness is not None and optimizer_closure is not None:
            first = optimizer_closure
            optimizer_closure = self._sharpness.around(self, first, self._spare_layers)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave the layers alone whose turn has not come."""
        self._spare_layers()

    def _spare_layers(self) -> None:
        if every := self._options.unfreeze_every:
            drop_untrained_gradients(self, len(self.backbone.blocks), every, self.global_step)

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
        optimizer = self._optimizer_of(
            0.0 if options.lr == "auto" else options.lr
        )  # which is found when the run starts
        if self._lr_scheduler is not None:
            return schedule_config(optimizer, self._lr_scheduler)
        schedule = WarmupCosine(optimizer, options.warmup_steps, self.run_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer_of(self, lr: float) -> Any:
        options = self._options
        rates = Rates(len(self.backbone.blocks), options.layer_decay, options.head_lr_factor)
        return build_optimizer(self, self._optimizer, lr, options.momentum, options.weight_decay, rates)

    def on_fit_start(self) -> None:
        """Make what depends on the data: the loss, a new run's head, the average of the weights."""
        options, resumed = self._options, self.trainer.ckpt_path is not None
        if self._sharpness is not None:
            self._sharpness.check(self.trainer)
        if self.size_plan is None:
            self.backbone.serve(())  # trained at one size, weights for several are for that one
        self.criterion = make_loss(self.task, options, self._datamodule)
        if options.teacher is not None:
            prepared = getattr(self._datamodule, "preprocessing", None) or self.preprocessing
            self.teacher = make_teacher(self, prepared, options.teacher)
            self.teacher.check_same(self._teacher_before)
        self.features = frozen_features(self, self._datamodule)
        if options.head == "probe" and not resumed:
            self.head_note = start_from_probe(self, self._datamodule)
        if options.lr == "auto" and not resumed:
            self.hparams["lr"], self.lr_note = find_rate(self, self._datamodule, self._optimizer_of)
            self._adjust_schedule()
        if options.ema_decay:
            self.ema = WeightEma(self, options.ema_decay)
            if self._ema_state is not None:
                self.ema.load_state_dict(self._ema_state)

    def on_train_start(self) -> None:
        """Take the run as it is now: Lightning's finders change rate and batch size after the schedule was made."""
        self._adjust_schedule()
        # A run of few steps would show nothing.
        trainer: Any = self.trainer
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, self.run_steps // 10))

    def _adjust_schedule(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupCosine):
                config.scheduler.adjust(self._options.lr if isinstance(self._optimizer, str) else None, self.run_steps)

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

    def on_validation_epoch_start(self) -> None:
        """Show the training's means beside the dev metrics that are to come."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._log.begin_validation(self)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained: `load_backbone` reads it without anything else."""
        checkpoint["model_config"] = model_config(self.assembled(merged=False), self.label_names)
        if self._options.adapter != "none":
            checkpoint["adapter_factor"] = self._options.adapter_alpha / self._options.adapter_rank
        checkpoint["training_log"] = self._log.state_dict()
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the loss and accuracy that were being gathered.

        Raises:
            UserError: Its weights have another adapter.
        """
        if "state_dict" in checkpoint:  # not in one whose weights are split over files
            check_adapter(self.backbone, checkpoint["state_dict"], checkpoint.get("adapter_factor"))
        if "training_log" in checkpoint:  # not in a checkpoint of weights alone
            self._log.load_state_dict(checkpoint["training_log"], self.device)
        self._ema_state, self._teacher_before = checkpoint.get("ema"), checkpoint.get("teacher")
        if self._options.lr == "auto":
            self.hparams["lr"] = checkpoint["hyper_parameters"]["lr"]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> MixerClassifier:
        """The classifier that a checkpoint holds: backbone, classes and options, without what it was trained from.

        Args:
            checkpoint_path: A file.
            *args: As LightningModule.load_from_checkpoint.
            **kwargs: As LightningModule.load_from_checkpoint.
        """
        given = "backbone" in kwargs
        if not given:
            kwargs["backbone"] = load_backbone(checkpoint_path)
        kwargs.setdefault("weights_only", True)  # what comes from elsewhere must not run code
        module: MixerClassifier = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        if not given:  # it was made from what the checkpoint was made from
            module.hparams["backbone"] = load_checkpoint(Path(checkpoint_path))["hyper_parameters"]["backbone"]
        return module
