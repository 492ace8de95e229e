"""Features of a frozen backbone: computed once over a split, in its order, and kept in a file (`feature_file`).

The file's name is a hash of all that the features depend on: weights, images, pre-processing, precision. It can't hold
others than those that are asked for, and any command that asks for the same ones has them at once.

Shapes: n images of a split, b of a batch, L layers (each block, then the pre-logits; or these alone), C channels.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mixer_finetune import __version__
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.data.batches import Batch, batch_dataset, batch_loader
from mixer_finetune.data.fingerprint import images_hash
from mixer_finetune.data.sampling import MicroBatch
from mixer_finetune.errors import UserError
from mixer_finetune.training.feature_file import FeatureFile, FeatureMemory

View = Literal["evaluation", "training"]
# A CPU takes the images of a chunk in parts whose activations its caches hold: 1.3 to 1.5 times as fast.
_AT_ONCE_ON_CPU = 32
# Where the disk can't take the features, what is no larger is kept in memory.
MOST_IN_MEMORY = 2**30
# Seconds between two looks at what another process computes, and between two lines on how far this one is.
_POLL, _SAY_EVERY = 0.05, 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """Of all images of a split.

    Attributes:
        values: (n, L, C) float32, or float64 from a backbone in float64; NaN for images that could not be decoded.
        bad: These images, by their position, each with its name and the reason.
        computed: Images that this process computed; the others were there already.
    """

    values: Tensor
    bad: dict[int, str]
    computed: int

    def layer(self, layer: int = -1) -> Tensor:
        """Of one layer, (n, C): a block counted from 0, or -1 for the pre-logits."""
        return self.values[:, layer]

    @property
    def good(self) -> NDArray[np.int64]:
        """Positions of the images that have features."""
        return np.delete(np.arange(len(self.values)), list(self.bad))


@dataclass(frozen=True)
class Extractor:
    """A backbone that gives features.

    Attributes:
        backbone: On the device.
        device: Where it computes.
        precision: In the words of Lightning's Trainer, and whatever else changes the last bits.
        context: Within which it computes, for that precision.
    """

    backbone: Backbone
    device: torch.device
    precision: str = "32-true"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.backbone.stem.proj.weight.dtype

    @torch.no_grad()
    def __call__(self, images: Tensor, all_blocks: bool = False) -> Tensor:
        """Images (b, c, H, W), normalised, on the device, to features (b, L, C)."""
        whole = []
        for part in torch.split(images, _AT_ONCE_ON_CPU if self.device.type == "cpu" else len(images)):
            pooled: list[Tensor] = []
            with self.context():
                last = self.backbone.forward_pre_logits(part.to(self.dtype), pooled=pooled if all_blocks else None)
            whole.append(torch.stack([*pooled, last], 1))
        layers = torch.cat(whole)
        return layers.to(torch.promote_types(layers.dtype, torch.float32))


def frozen_features(module: Any, data: Any) -> dict[str, Features]:
    """Features of the splits that a run would compute anew in each epoch, by role, where that changes nothing else.

    That is so where the backbone is frozen, training images are the same in every epoch, and an epoch and more is
    trained. Nobody else may look at the images: module and data module are this package's own.

    Args:
        module: A MixerClassifier that is about to be trained.
        data: Its data module.
    """
    trainer = module.trainer
    own = (type(module).__module__, type(data).__module__)
    if own != ("mixer_finetune.training.classifier", "mixer_finetune.data.module"):
        return {}
    if any(p.requires_grad for p in module.backbone.parameters()) or not data.augmentation.fixed:
        return {}
    if module.teacher is not None or module.size_plan is not None:
        return {}  # which answers images; whose sizes differ from step to step
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return {}  # the weights are split over the devices
    if any(isinstance(callback, BaseFinetuning) for callback in trainer.callbacks):
        return {}  # it thaws the backbone
    if module.run_steps < data.train_batches.steps:
        return {}
    wanted: list[tuple[str, View]] = [("train", "training")]
    if "val" in data.splits and trainer.limit_val_batches == 1.0:
        wanted.append(("val", "evaluation"))
    try:
        return {role: split_features(extractor_of(module), data, role, view=view) for role, view in wanted}
    except NoRoom as error:
        log.info(f"{error}; each epoch computes them anew")
        return {}


def extractor_of(module: Any) -> Extractor:
    """The backbone of a MixerClassifier, in the precision of its trainer."""
    trainer = getattr(module, "_trainer", None)
    compiled = " compiled" if module.hparams.compile else ""
    precision = "32-true" if trainer is None else str(trainer.precision)
    context = nullcontext if trainer is None else trainer.precision_plugin.forward_context
    return Extractor(module.backbone, module.device, precision + compiled, context)


def weights_hash(backbone: Backbone) -> str:
    """A hash of all that the pre-logits are computed from: shape, activation and weights, without the head."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((backbone.architecture, backbone.activation, backbone.geometry)).encode())
    for name, value in sorted(backbone.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def split_features(
    extractor: Extractor, data: Any, role: str, *, all_blocks: bool = False, view: View = "evaluation"
) -> Features:
    """Features of a split of an ImageDataModule, from the file where they are kept; what is missing is computed first.

    Args:
        extractor: The backbone.
        data: The module, which prepares images for that backbone.
        role: "train", "val" or "test".
        all_blocks: Of each block and of the pre-logits; else of the pre-logits alone.
        view: The images as in evaluation; or as in training, which must be without randomness.

    Raises:
        UserError: An image can't be decoded and the data module is not to skip it; a feature is no finite number; or
            there is no room to keep them.
    """
    split, chunk, backbone = data.require(role), data.eval_batch_size, extractor.backbone
    known = (
        *(__version__, torch.__version__, weights_hash(backbone), images_hash(split), repr(data.preprocessing)),
        *(view, extractor.precision, str(extractor.dtype), extractor.device.type, chunk, data.max_image_pixels),
    )
    dtype = np.float64 if extractor.dtype == torch.float64 else np.float32

    def opened(layers: int) -> tuple[Path, tuple[int, int, int]]:
        shape = len(split), layers, backbone.num_features
        key = hashlib.blake2b(repr((*known, layers)).encode(), digest_size=16).hexdigest()
        return _folder() / f"{key}.{'x'.join(map(str, shape))}", shape

    each = len(backbone.blocks) + 1
    for layers in (each,) if all_blocks else (each, 1):
        path, shape = opened(layers)
        if layers == each and not all_blocks and not path.is_file():
            continue
        file = _file(path, shape, dtype, chunk)
        try:
            if layers == each and not all_blocks and file.missing():
                continue
            return _filled(file, extractor, data, role, view)
        finally:
            file.close()
    raise AssertionError("the pre-logits alone are always computed")


def _file(path: Path, shape: tuple[int, int, int], dtype: type[np.floating], chunk: int) -> FeatureFile | FeatureMemory:
    """The file, or memory where the disk can't take it."""
    try:
        return FeatureFile(path, shape, dtype, chunk)
    except OSError as error:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        problem = f"{size / 1e6:,.0f} MB of features can't be kept in {path.parent} ({error.strerror or error})"
        if size > MOST_IN_MEMORY:
            raise NoRoom(f"{problem}: free the disk, or set HF_HOME to a folder where there is room") from error
        log.info(f"{problem}: they stay in memory")
        return FeatureMemory(shape, dtype, chunk)


class NoRoom(UserError):
    """The features can't be kept."""


def _folder() -> Path:
    """Beside what was downloaded from the Hub, which users put where there is room."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "mixer_finetune" / "features"


def _filled(file: FeatureFile | FeatureMemory, extractor: Extractor, data: Any, role: str, view: View) -> Features:
    """The features, after whatever is missing in the file has been computed by this process or by others."""
    split, missing = data.splits[role], file.missing()
    images: Dataset[Batch] | None = None
    computed, started, said = 0, time.monotonic(), time.monotonic()
    if missing:
        images = _images(data, role, view)
        n = sum(len(range(*file.rows(i).indices(len(split)))) for i in missing)
        what = extractor.backbone.origin["source"]
        log.info(f"computing features of {n:,} images of {split.name} by {what}, once, into {file.path}")
    while missing:
        assert images is not None
        claimed = _Claimed(file, missing)
        for batch in batch_loader(images, claimed, data.num_workers):
            chunk, values = _chunk_of(batch, file, extractor, data, view)
            file.write(chunk, values)
            computed += len(values)
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                left = (said - started) / computed * (len(file.missing()) * file.chunk)
                log.info(f"features   {computed:,} images, {computed / (said - started):,.0f} a second, "
                         f"{left / 60:.0f} min left")  # fmt: skip
        file.commit()
        missing = file.missing()
        if missing and not claimed.any:
            time.sleep(_POLL)  # others compute them, or die and leave them to this process
    whole, bad = file.values(), dict[int, str]()
    for i in file.gaps():
        rows = np.arange(*file.rows(i).indices(len(split)))
        gaps = rows[torch.isnan(whole[rows[0] : rows[-1] + 1]).flatten(1).any(1).numpy()]
        bad |= _reasons(images or _images(data, role, view), data, gaps, extractor)
    return Features(whole, bad, computed)


def _images(data: Any, role: str, view: View) -> Dataset[Batch]:
    augmentation = data.augmentation if view == "training" else None
    return batch_dataset(data.splits[role], data.preprocessing, augmentation, data.seed, data.max_image_pixels)


class _Claimed:
    """The missing chunks of a file as micro-batches, each claimed when the loader asks for it."""

    def __init__(self, file: FeatureFile | FeatureMemory, missing: list[int]) -> None:
        self.file, self.missing, self.any = file, missing, False

    def __len__(self) -> int:
        return len(self.missing)

    @property
    def largest(self) -> int:
        """Images of the largest micro-batch."""
        return min(self.file.chunk, self.file.shape[0])

    def __iter__(self) -> Iterator[MicroBatch]:
        for chunk in self.missing:
            if self.file.claim(chunk):
                self.any = True
                indices = np.arange(*self.file.rows(chunk).indices(self.file.shape[0]))
                yield MicroBatch(0, indices, 0, len(indices), indices)


def _chunk_of(
    batch: Batch, file: FeatureFile | FeatureMemory, extractor: Extractor, data: Any, view: View
) -> tuple[int, NDArray[np.floating]]:
    """The number of a batch's chunk, and its features."""
    batch = data.transfer_batch_to_device(data.on_before_batch_transfer(batch, 0), extractor.device, 0)
    chunk = int(batch.indices[0] if len(batch.indices) else batch.bad[0][0]) // file.chunk
    rows = file.rows(chunk)
    values = np.full((rows.stop - rows.start, *file.shape[1:]), np.nan, file.dtype)
    if len(batch.images):
        images = data.prepare(batch, training=view == "training").images
        values[batch.indices - rows.start] = extractor(images, all_blocks=file.shape[1] > 1).cpu().numpy()
    return chunk, values


def _reasons(images: Any, data: Any, gaps: NDArray[np.int64], extractor: Extractor) -> dict[int, str]:
    """Why these images have no features; the data module is told of them, as when they were first decoded."""
    batch: Batch = images.__getitems__(MicroBatch(0, gaps, 0, len(gaps), gaps))
    data.on_before_batch_transfer(batch, 0)
    reasons = dict(batch.bad)
    if fine := [int(i) for i in gaps if int(i) not in reasons]:
        problem = f"{len(fine):,} images have features that are no finite numbers in precision {extractor.precision}"
        raise UserError(problem, option="precision", choices="32-true")
    return reasons
