"""ImageDataModule: image data sets as batches, in an order and with randomness that no machine changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mixer_finetune.augment import Augmentation
from mixer_finetune.backbones.preprocessing import FITS, Preprocessing
from mixer_finetune.data.batches import Batch, EpochLoader, FeatureRows, batch_dataset, batch_loader
from mixer_finetune.data.classes import match_classes
from mixer_finetune.data.exclude import leave_out
from mixer_finetune.data.preparing import augmented, evaluation_images
from mixer_finetune.data.sampling import CurrentBatches, EvaluationSampler, GlobalBatchSampler
from mixer_finetune.data.sizes import SizePlan
from mixer_finetune.data.sources import Split, open_source
from mixer_finetune.data.streaming import streamed_order
from mixer_finetune.data.subsets import Subsets
from mixer_finetune.errors import UserError, check_at_least
from mixer_finetune.images import MAX_PIXELS

log = logging.getLogger(__name__)


class ImageDataModule(pl.LightningDataModule):
    """Feeds an image data set to a LightningModule: from the Hub, a folder of images, parquet files or Python objects.

    A MixerClassifier gets whole batches (see `Batch`), any other module (images, labels), normalised.

    Args:
        source: Hub id (user/name), folder of images (one folder a class), table of paths and labels (.csv, .tsv,
            .jsonl, .parquet), parquet files with images, or the bundled `digits`. From Python also a `datasets.Dataset`
            or `DatasetDict`, a pair of lists (paths, labels), or such pairs by split ({"train": (paths, labels), ...}).
        config: Configuration of a Hub data set that has several.
        revision: Branch, tag or commit of a Hub data set.
        train_split: Name of the split to train on; found by its usual names when not given.
        val_split: Name of the dev split; when there is none, one is carved out of train.
        test_split: Name of the test split.
        image_column: Name of the image column; found by its type when not given.
        label_column: Name of the label column; found by type and usual names when not given.
        label_separator: What stands between several labels of an image in one cell, such as a comma; an image may then
            have none, one or several. A column of lists needs no separator.
        label_columns: Names of columns of 0 and 1, one a class, where an image may have several labels.
        image_root: Folder that a table's paths are relative to; the table's own when not given.
        stream: Read the images of a Hub data set of parquet files while the run goes on, row group by row group.
        stream_buffer: Images that are shuffled together, where they are streamed.
        stream_cache_gb: Most gigabytes of a stream that are kept on the disk, for all processes of the machine.
        val_fraction: Share of train that is carved out, stratified, where there is no dev split; 0 for none.
        train_fraction: Share of what is left that is trained on, stratified.
        images_per_class: Most images of a class that are trained on (few-shot); all when not given.
        folds: Cut train into so many stratified parts, one of which is the dev split.
        fold: Which of them, from 0.
        exclude: CSV file of images to leave out, by split and file or row, as `audit` writes it.
        batch_size: Samples of a step over all devices, at most; an epoch is cut into batches of nearly equal size.
        micro_batch_size: Most samples that a device takes at once; the rest of its share is accumulated.
        sampling: shuffled, each training image once an epoch; or balanced, all classes equally often, with images of
            the smaller ones repeated and every image seen.
        eval_batch_size: Samples that a device takes at once in evaluation.
        crop_pct: Share of the shorter side that the evaluation crop keeps; the backbone's own when not given. It is
            exported with the model.
        fit: How an image of another shape than the backbone's is fitted to it, in training and in evaluation: "crop"
            cuts off what is too long, "squash" ignores the aspect ratio, "pad" puts a border of the mean colour round
            it; as the backbone's own pre-processing says when not given. It is exported with the model.
        repeats: How often a training image comes in a batch, each time augmented otherwise (repeated augmentation,
            often 3); an epoch then has as many steps as ever, of fewer images.
        num_workers: Worker processes that decode; by default one a core that the run may use, at most 16 a device (none
            where small images are decoded once).
        max_image_pixels: Most pixels that are decoded of an image; a larger one can't be decoded, but for a JPEG that
            is decoded at a fraction of its size.
        on_bad_image: "error" stops at an image that can't be decoded; "skip" leaves it out and counts it.
        plain_batches: Give (images, labels) to any module, also to a MixerClassifier.
        seed: Of order, augmentation and the carved split.
        preprocessing: How images are prepared; the module's `preprocessing` when not given.
        **augmentation: What training does to an image: the options of `Augmentation`.

    Attributes:
        label_names: Name of each class.
        num_classes: How many there are.
        splits: "train", "val" and "test" where they exist.
        evaluation_role: Which of them `test_dataloader` and `predict_dataloader` give.
        description: What was chosen, in one line.
        excluded: Of each role how many images are left out by `exclude`, and a hash of which.
        license: As the data set's card states it.
        bad_images: What could not be decoded, each with its name and the reason.

    Raises:
        UserError: The data can't be used as asked.
    """

    def __init__(
        self,
        source: Any,
        config: str | None = None,
        revision: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        label_separator: str | None = None,
        label_columns: list[str] | None = None,
        image_root: str | None = None,
        stream: bool = False,
        stream_buffer: int = 10_000,
        stream_cache_gb: float = 10.0,
        val_fraction: float = 0.1,
        train_fraction: float = 1.0,
        images_per_class: int | None = None,
        folds: int | None = None,
        fold: int = 0,
        exclude: str | None = None,
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        eval_batch_size: int = 256,
        crop_pct: float | None = None,
        fit: Literal["crop", "squash", "pad"] | None = None,
        repeats: int = 1,
        num_workers: int | None = None,
        max_image_pixels: int = MAX_PIXELS,
        on_bad_image: Literal["error", "skip"] = "error",
        plain_batches: bool = False,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
        **augmentation: Any,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size, micro_batch_size=micro_batch_size, eval_batch_size=eval_batch_size)
        check_at_least(1, stream_buffer=stream_buffer)
        if not stream_cache_gb > 0:
            raise UserError(f"stream_cache_gb must be above 0, got {stream_cache_gb}", option="stream_cache_gb")
        check_at_least(1, max_image_pixels=max_image_pixels, repeats=repeats)
        check_at_least(0, num_workers=num_workers)
        if fit is not None and fit not in FITS:
            raise UserError(f"unknown fit '{fit}'", option="fit", choices=" or ".join(FITS))
        subsets = Subsets(val_fraction, train_fraction, images_per_class, folds, fold)
        subsets.check()
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct must be above 0 and at most 1, got {crop_pct}", option="crop_pct")
        if on_bad_image not in ("error", "skip"):
            raise UserError(f"unknown on_bad_image '{on_bad_image}'", option="on_bad_image", choices="error or skip")
        if sampling not in ("shuffled", "balanced"):
            raise UserError(f"unknown sampling '{sampling}'", option="sampling", choices="shuffled or balanced")
        if repeats > 1 and sampling == "balanced":
            problem = "balanced sampling repeats images already, those of the smaller classes"
            raise UserError(problem, advice="leave out {repeats} or {sampling}")
        if stream and sampling == "balanced":
            problem = "balanced sampling takes images from anywhere, which a stream can't"
            raise UserError(problem, advice="leave out {stream} or {sampling}")
        self.sampling, self.repeats, self.stream_buffer = sampling, repeats, stream_buffer
        self.batch_size, self.micro_batch_size, self.eval_batch_size = batch_size, micro_batch_size, eval_batch_size
        self.augmentation = Augmentation(**augmentation)
        self.augmentation.check()
        self.num_workers, self.on_bad_image, self.seed, self.crop_pct = num_workers, on_bad_image, seed, crop_pct
        self.fit, self.max_image_pixels = fit, max_image_pixels
        self.plain_batches, self._given_preprocessing = plain_batches, preprocessing
        self.bad_images: set[str] = set()
        self._notes: set[str] = set()

        opened = open_source(
            source,
            config=config,
            revision=revision,
            splits={"train": train_split, "val": val_split, "test": test_split},
            image_column=image_column,
            label_column=label_column,
            label_separator=label_separator,
            label_columns=label_columns,
            image_root=image_root,
            stream=stream,
            stream_cache_gb=stream_cache_gb,
        )
        self.source, self.revision, self.license = opened.name, opened.revision, opened.license
        self.label_names, self.description = opened.label_names, opened.description
        whole, self.excluded, left_out = leave_out(opened.splits, exclude) if exclude else (opened.splits, {}, [])
        self.splits, notes = subsets.take(whole, seed)
        self.description = "; ".join([self.description, *left_out, *notes])
        if sampling == "balanced" and self.task == "multi_label":
            problem = "balanced sampling needs one label an image, and these have several"
            raise UserError(problem, option="sampling", choices="shuffled")
        if stream and "train" in self.splits:
            window = self.splits["train"].records.window_bytes(stream_buffer)
            if window > stream_cache_gb * 1e9:
                problem = f"{stream_buffer:,} shuffled images take about {window / 1e9:.2g} GB, more than the cache has"
                raise UserError(problem, advice="raise {stream_cache_gb} or lower {stream_buffer}")
        self.evaluation_role = next((role for role in ("test", "val") if role in self.splits), None)
        self._datasets: dict[tuple[Any, ...], Dataset[Batch]] = {}
        self._plan: tuple[Any, GlobalBatchSampler] | None = None
        self._train_loader: EpochLoader | None = None
        self._resume_at: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def task(self) -> str:
        """What is asked of an image: "single_label", or "multi_label" where it may have several."""
        return "multi_label" if any(split.several for split in self.splits.values()) else "single_label"

    def match_classes(self, label_names: Sequence[str]) -> str:
        """Number the classes as another list does, by name.

        Args:
            label_names: Of a model, for example; the data's must be among them.

        Returns:
            What was mapped and what is absent, in a line; empty where both lists are the same.

        Raises:
            UserError: The data has a class that is not among them.
        """
        match = match_classes(self.label_names, label_names, "the data", "the model")
        if list(label_names) != self.label_names:
            self.splits = {
                role: split.renumbered(match.numbers, len(label_names)) for role, split in self.splits.items()
            }
            self.label_names = list(label_names)
            self._datasets.clear()
        return match.note

    def require(self, role: str) -> Split:
        """The split with that role ("train", "val" or "test").

        Raises:
            UserError: There is none, or for training a class has no sample.
        """
        if role not in self.splits:
            problem = f"{self.source} has no {role} split (it has {', '.join(s.name for s in self.splits.values())})"
            raise UserError(problem, advice=f"name one with {{{role}_split}}")
        split = self.splits[role]
        if role == "train":
            counts = split.class_counts(self.num_classes)
            if (counts == 0).any():
                absent = [self.label_names[i] for i in np.flatnonzero(counts == 0)[:5]]
                raise UserError(
                    f"{int((counts == 0).sum())} of {self.num_classes} classes have no training sample: "
                    f"{', '.join(absent)}; add images, or remove those classes from the data set"
                )
        return split

    # Batches of training

    @property
    def train_batches(self) -> GlobalBatchSampler:
        """The plan of an epoch's micro-batches on this device, for the batch sizes as they are now.

        Raises:
            UserError: There are more devices than samples in a global batch.
        """
        rank, world = self._rank_and_world()
        n = self.epoch_samples
        key = (n, self.batch_size, self.micro_batch_size, rank, world)
        if self._plan is None or self._plan[0] != key:
            steps = -(-n // self.batch_size)
            share = -(-n // steps) / world
            wanted = math.ceil(share / self.micro_batch_size) if self.micro_batch_size else 1
            accumulate = max(1, min(wanted, n // steps // world))  # the smallest global batch has a sample for each
            self._plan = key, self.batch_plan(rank, world, accumulate)
        return self._plan[1]

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch, with those that balancing repeats."""
        split = self.require("train")
        return len(split) if self.sampling != "balanced" else self.num_classes * int(np.bincount(split.labels).max())

    def batch_plan(self, rank: int, world: int, accumulate: int) -> GlobalBatchSampler:
        """Micro-batches of a device, so many to a step; arguments as for `GlobalBatchSampler`."""
        split = self.require("train")
        groups = split.groups
        order = None if groups is None else partial(streamed_order, groups, self.seed, buffer=self.stream_buffer)
        return GlobalBatchSampler(
            self.epoch_samples,
            self.batch_size,
            self.seed,
            rank,
            world,
            accumulate,
            split.labels if self.sampling == "balanced" else None,
            self.repeats,
            partners=self.augmentation.mixes,
            order=order,
            size_of=self._size_of,
        )

    @property
    def size_plan(self) -> SizePlan | None:
        """Of the training images' sizes, as the module that is trained has it; None where all have one size."""
        plan = getattr(getattr(self.trainer, "lightning_module", None), "size_plan", None)
        return plan if isinstance(plan, SizePlan) else None

    def _size_of(self, epoch: int, step: int) -> tuple[int, int] | None:
        if (plan := self.size_plan) is None:
            return None
        return plan.at(epoch * self.epoch_steps + step, self.total_steps, self.epoch_steps)

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch, as the trainer limits it."""
        plan, trainer = self.train_batches, self.trainer
        assert trainer is not None
        limit = trainer.limit_train_batches
        micro = min(int(len(plan) * limit) if isinstance(limit, float) else limit or 0, len(plan))
        return -(-micro // plan.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        The trainer's own `estimated_stepping_batches` would iterate the loader before a resumed run knows where it is.

        Raises:
            UserError: The run has no end, or no step.
        """
        trainer = self.trainer
        assert trainer is not None
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        bounds = [n for n in (self.epoch_steps * epochs if epochs >= 0 else -1, trainer.max_steps) if n >= 0]
        if not bounds:
            raise UserError("the run has no end", advice="set {trainer.max_epochs} or {trainer.max_steps}")
        if min(bounds) == 0:
            advice = "raise {trainer.max_epochs}, {trainer.max_steps} or {trainer.limit_train_batches}"
            raise UserError("the run has no step", advice=advice)
        return min(bounds)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def setup(self, stage: str) -> None:
        """To fit, set the trainer's accumulation from the batch split."""
        if stage == "fit" and self.trainer:
            if self.trainer.accumulate_grad_batches not in (1, self.train_batches.accumulate):
                problem = "accumulate_grad_batches is derived from the batch split"
                raise UserError(problem, advice="set {micro_batch_size} in its place")
            self.trainer.accumulate_grad_batches = self.train_batches.accumulate

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of the training split, from where a resumed run stopped."""
        batches = CurrentBatches(lambda: self.train_batches)
        self._train_loader = self._loader("train", batches, self.augmentation, begin=self._begin_epoch)
        return self._train_loader

    def _begin_epoch(self) -> None:
        """Put the sampler at the run's epoch, behind what a resumed run has done of it."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        if self.trainer:
            self.trainer.accumulate_grad_batches = self.train_batches.accumulate
        resumed_epoch, done = self._resume_at or (None, 0)
        if epoch != resumed_epoch:
            self.train_batches.start_at(epoch)
        elif done < len(self.train_batches):
            self.train_batches.start_at(epoch, done)
        else:
            self.train_batches.start_at(epoch + 1)  # Lightning counts the epoch on only after it made the iterator

    # Batches of evaluation

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Batches of the dev split; an empty list where there is none."""
        return self.eval_dataloader("val") if "val" in self.splits else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the split that results are of: test, or the dev split where there is no test split."""
        return self.eval_dataloader(self.evaluation_role or "test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same as `test_dataloader`."""
        return self.test_dataloader()

    def eval_dataloader(self, role: str) -> DataLoader[Batch]:
        """Batches of any split, unaugmented, each sample once over all devices.

        Raises:
            UserError: There is no such split, or a device would get no sample of it.
        """
        split, (rank, world) = self.require(role), self._rank_and_world()
        if len(split) < world:
            problem = f"{split.name} has {len(split)} images for {world} devices"
            raise UserError(problem, advice=f"use fewer {{trainer.devices}}, or a larger {{{role}_split}}")
        sampler = EvaluationSampler(len(split), self.eval_batch_size, rank, world)
        return self._loader(role, sampler, None)

    def _loader(
        self, role: str, sampler: Any, augmentation: Augmentation | None, begin: Callable[[], None] | None = None
    ) -> EpochLoader:
        features = self._features(role)
        # Another model may want other images; those of train may be asked for as in evaluation, too.
        plan = None if augmentation is None else self.size_plan
        key = role, self.preprocessing, features is not None, augmentation is not None, plan
        if key not in self._datasets and features is not None:
            self._datasets[key] = FeatureRows(features.layer(), self.splits[role].labels, features.bad)
        elif key not in self._datasets:
            self._datasets[key] = batch_dataset(
                self.require(role), self.preprocessing, augmentation, self.seed, self.max_image_pixels, plan
            )
        return batch_loader(
            self._datasets[key],
            sampler,
            self.num_workers,
            persistent=role != "test",
            begin=begin,
            processes=self.trainer.num_devices if self.trainer else 1,
        )

    def _features(self, role: str) -> Any:
        """What the module that is trained takes in the place of images, its backbone being frozen; None for images."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return None
        return getattr(self.trainer.lightning_module, "features", {}).get(role)

    # From the loader to the module

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: as given, else as the module's backbone wants it, else the paper's way at 224 px."""
        module = getattr(self.trainer, "lightning_module", None)
        prepared = self._given_preprocessing or getattr(module, "preprocessing", None) or Preprocessing()
        if self.crop_pct is not None:
            prepared = replace(prepared, crop_pct=self.crop_pct)
        return prepared if self.fit is None else replace(prepared, crop_mode=FITS[self.fit])

    @preprocessing.setter
    def preprocessing(self, preprocessing: Preprocessing) -> None:
        self._given_preprocessing = preprocessing

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Report images that could not be decoded, and what was assumed about pixels, each once.

        Raises:
            UserError: There are some, and `on_bad_image` is "error".
        """
        for note in set(getattr(batch, "notes", ())) - self._notes:
            self._notes.add(note)
            log.info(note)
        if isinstance(batch, Batch) and batch.failed:
            raise UserError(batch.failed)
        if isinstance(batch, Batch) and batch.bad:
            if self.on_bad_image == "error":
                raise UserError(batch.bad[0][1], advice="remove it, or use {on_bad_image} skip")
            self.bad_images.update(problem for _, problem in batch.bad)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move images and labels; the rest of a batch stays on the CPU."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        return batch._replace(images=images, labels=labels)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crop small images, augment and normalise, on the device."""
        if not isinstance(batch, Batch):
            return batch
        prepared = self.prepare(batch, training=bool(self.trainer and self.trainer.training))
        takes_batch = getattr(getattr(self.trainer, "lightning_module", None), "takes_batch", False)
        return prepared if takes_batch and not self.plain_batches else (prepared.images, prepared.labels)

    def prepare(self, batch: Batch, training: bool) -> Batch:
        """A batch of the loader, (b, c, H, W) uint8, to (b, c, S, T) float32, normalised; augmented for training."""
        if batch.images.ndim == 2:
            return batch  # features
        if not training:
            return batch._replace(images=evaluation_images(batch, self.preprocessing))
        return augmented(batch, self.augmentation, self.preprocessing, self.num_classes, self.seed)

    def gather_bad_images(self) -> None:
        """Let every process know what the others could not decode."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            found: list[set[str]] = [set()] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(found, self.bad_images)
            self.bad_images = set().union(*found)

    @property
    def train_wait(self) -> float:
        """Seconds that training has waited for batches."""
        return self._train_loader.waited if self._train_loader else 0.0

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch the run is, for a checkpoint."""
        if self._plan is None or not self.trainer:
            return {}
        loop: Any = self.trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed
        return {"epoch": self._plan[1].epoch, "batches_done": done, "batches": len(self._plan[1])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the batch after the last one done.

        Raises:
            UserError: An epoch is cut into other micro-batches than when the run was interrupted.
        """
        if state_dict.get("batches_done"):  # at the start of an epoch it may be cut otherwise, as batch size finders do
            before, now = state_dict["batches"], len(self.train_batches)
            if before != now:
                raise UserError(
                    f"an epoch had {before:,} micro-batches when the run was interrupted, and would now have {now:,}",
                    advice="resume with the same {batch_size}, {micro_batch_size} and {trainer.devices}, or begin anew",
                )
            self._resume_at = (state_dict["epoch"], state_dict["batches_done"])
