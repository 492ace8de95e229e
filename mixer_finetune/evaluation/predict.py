"""predict: labels and probabilities of image files, or of a split of a data set, streamed to disk.

Shapes: b images of a batch, k most probable classes, C channels of the pre-logits.
"""

from __future__ import annotations

import glob
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.preprocessing import denormalize
from mixer_finetune.data.batches import DecodedImages, batch_loader
from mixer_finetune.data.folders import IMAGE_SUFFIXES, FileRecords, images_below, printable
from mixer_finetune.data.preparing import evaluation_images
from mixer_finetune.data.reading import SPLIT_NAMES
from mixer_finetune.data.sampling import EvaluationSampler
from mixer_finetune.data.sources import Split, open_source
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.label_sets import ANSWERED
from mixer_finetune.evaluation.predictions import prediction_columns
from mixer_finetune.evaluation.rows import begin_rows, finish_rows, row_schema
from mixer_finetune.evaluation.trusting import Trust, calibration_of
from mixer_finetune.files import write_atomically
from mixer_finetune.images import MAX_PIXELS, to_image
from mixer_finetune.training.precision import use_fast_float32

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What a predictor says about a batch.

    Attributes:
        top: (b, k) most probable classes, the most probable first.
        probabilities: (b, k) theirs.
        features: (b, C) pre-logits, float32.
        labels: (b, classes) which classes are answers, where an image may have several; else None.
        trust: Of each image the values of the columns that `trusting` adds, by name; None where it adds none.
    """

    top: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    labels: NDArray[np.bool_] | None
    trust: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Predictor:
    """A backbone that answers in labels.

    Attributes:
        backbone: In evaluation mode, on the device.
        device: Where it computes.
        top_k: Labels an image.
        tta: Whether to average over the image and its mirror image.
        precision: "32-true" or "bf16-mixed".
        trust: What is asked of the model's calibration; None for nothing.
        pad: Images of every batch, where the backbone is compiled: a smaller last batch would be compiled for anew.
    """

    backbone: Backbone
    device: torch.device
    top_k: int
    tta: bool = False
    precision: str = "32-true"
    pad: int | None = None
    trust: Trust | None = None

    @classmethod
    def load(
        cls,
        model: str,
        *,
        image_size: int | tuple[int, int] | None = None,
        top_k: int = 5,
        tta: bool = False,
        precision: str = "32-true",
        device: str | None = None,
        compiled_for: int | None = None,
        coverage: float | None = None,
        abstain: float | None = None,
        ood: bool = False,
    ) -> Predictor:
        """Load a model.

        Args:
            model: Run folder, checkpoint, model folder or Hub id.
            image_size: Side, or (height, width), in pixels; the model's own when None.
            top_k: Labels an image, at most one a class.
            tta: As the attribute.
            precision: As the attribute.
            device: "cpu", "cuda", ...; the best one present when None.
            compiled_for: Images of a batch, if the blocks are to be compiled.
            coverage: As for `Trust`, as are `abstain` and `ood`.
            abstain: Likewise.
            ood: Likewise.

        Raises:
            UserError: The model can't be had or has no head, the device can't be used, or there is no compiler.
        """
        where = usable_device(device)
        backbone = load_backbone(model, image_size=image_size).eval()
        if backbone.num_classes == 0:
            raise UserError(f"{model} has no head: it can't classify")
        trust = None
        if coverage is not None or abstain is not None or ood:
            trust = Trust(calibration_of(model, backbone.origin.get("revision")), coverage, abstain, ood)
        if where.type == "cpu":
            use_fast_float32()
        if compiled_for:
            backbone.compile_blocks()
        return cls(backbone.to(where), where, min(top_k, backbone.num_classes), tta, precision, compiled_for, trust)

    @property
    def label_names(self) -> list[str]:
        """Names of the classes; their numbers where they have none."""
        return self.backbone.label_names or [str(i) for i in range(self.backbone.num_classes)]

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, each of them from a probability of one half on."""
        return self.backbone.task == "multi_label"

    @property
    def computed_by(self) -> str:
        """What the answers depend on besides the images, so that a resumed predict does not mix two kinds."""
        weights = b"".join(value.detach().cpu().numpy().tobytes() for value in self.backbone.head.state_dict().values())
        resized = f" at {self.backbone.image_size}" if "resized" in self.backbone.origin else ""
        trust = self.trust.key if self.trust else ""
        return f"{hashlib.sha256(weights).hexdigest()} {self.precision} tta={self.tta}{resized}{trust}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Answers:
        """Classify images (b, c, H, W), normalised, on the device."""
        count = len(images)
        if self.pad:
            images = torch.cat([images, images.new_zeros(self.pad - count, *images.shape[1:])])
        views = [images, images.flip(-1)] if self.tta else [images]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            pre_logits = [self.backbone.forward_pre_logits(view) for view in views]  # each (b, C)
            logits = [self.backbone.head(view) for view in pre_logits]
        probabilities = torch.stack([self.backbone.probabilities(view) for view in logits]).mean(0)[
            :count
        ]  # (b, classes)
        top = probabilities.topk(self.top_k)
        features = torch.stack(pre_logits).float().mean(0)[:count]
        labels = (probabilities >= ANSWERED).cpu().numpy() if self.several else None
        trust = self.trust.cells(logits[0][:count], probabilities, self.label_names) if self.trust else None
        return Answers(top.indices.cpu().numpy(), top.values.cpu().numpy(), features.cpu().numpy(), labels, trust)


def write_predictions(
    predictor: Predictor,
    images: Split,
    target: Path,
    *,
    batch_size: int = 64,
    features: bool = False,
    explain: Path | None = None,
    resume: bool = False,
    max_pixels: int = MAX_PIXELS,
    see: Callable[[dict[str, Any]], None] | None = None,
) -> list[str]:
    """Classify images, and write a row for each: file, most probable labels with probabilities, and what went wrong.

    The rows are kept beside the target, in `<target>.part`, until all are there.

    Args:
        predictor: That answers.
        images: To classify.
        target: A .csv, .jsonl or .parquet file.
        batch_size: Images at once.
        features: Whether to add the pre-logits, which a .csv can't hold.
        explain: Folder for a picture of each image beside where the evidence for its first label lies.
        resume: Whether to go on with what an interrupted call left.
        max_pixels: Most pixels that are decoded of one image.
        see: Is shown each row, without its features.

    Returns:
        What went wrong with images, a line for each.

    Raises:
        UserError: There is nothing to go on with, or something that is not to be lost.
        OSError: The disk is full.
    """
    more = predictor.trust.columns if predictor.trust else ()
    schema = row_schema(predictor.top_k, features, predictor.several, predictor.computed_by, more)
    part = part_file(target)
    done = begin_rows(part, schema, images, resume)
    rest = images.take(np.arange(done, len(images)), images.name)
    with open(part, "ab") as file:
        for rows in _rows(predictor, rest, batch_size, schema, explain, max_pixels) if len(rest) else ():
            file.write(rows.serialize())
            file.flush()
    return finish_rows(part, target, see, predictor.trust.count if predictor.trust else None)


def part_file(target: Path) -> Path:
    """Where the rows are kept until all are there."""
    return target.with_name(target.name + ".part")


def _rows(
    predictor: Predictor, images: Split, batch_size: int, schema: pa.Schema, explain: Path | None, max_pixels: int
) -> Iterator[pa.RecordBatch]:
    """The rows of each batch, in the order of the images."""
    backbone, names = predictor.backbone, predictor.label_names
    # Seen once, small images are better decoded by the workers than into memory first.
    data = DecodedImages(images, backbone.preprocessing, max_pixels=max_pixels)
    notes: set[str] = set()
    for batch in batch_loader(data, EvaluationSampler(len(images), batch_size), num_workers=None):
        for note in set(batch.notes) - notes:
            notes.add(note)
            log.info(note)
        rows: dict[int, dict[str, Any]] = {index: {"error": problem} for index, problem in batch.bad}
        if len(batch.indices):
            ready = evaluation_images(batch._replace(images=batch.images.to(predictor.device)), backbone.preprocessing)
            answers = predictor(ready)
            for i, index in enumerate(batch.indices.tolist()):
                pairs = zip(answers.top[i].tolist(), answers.probabilities[i].tolist(), strict=True)
                cells = [cell for j, p in pairs for cell in (names[j], p)]
                rows[index] = dict(zip(prediction_columns(predictor.top_k), cells, strict=True))
                if answers.labels is not None:
                    rows[index]["labels"] = [names[j] for j in np.flatnonzero(answers.labels[i])]
                if answers.trust is not None:
                    rows[index] |= answers.trust[i]
                if "features" in schema.names:
                    rows[index]["features"] = answers.features[i]
            if explain is not None:
                labels = torch.from_numpy(answers.top[:, 0]).to(predictor.device)
                files = [explain / f"{Path(images.image_name(i)).stem}_{images.rows[i]:06d}.png" for i in batch.indices]
                _write_evidence(backbone, ready, labels, files)
        ordered = [{"file": images.image_name(index), **rows[index]} for index in sorted(rows)]
        yield pa.RecordBatch.from_pylist(ordered, schema=schema)


def _write_evidence(backbone: Backbone, images: Tensor, classes: Tensor, files: list[Path]) -> None:
    """Save each image, as the backbone sees it, beside itself with the evidence for a class over it."""
    # Captum and matplotlib take longer to import than a predict of some images takes.
    from mixer_finetune.evaluation.explain import evidence
    from mixer_finetune.evaluation.mosaics import overlay

    heats = evidence(backbone, images, classes).cpu().numpy()
    for pixels, heat, file in zip(denormalize(images, backbone.preprocessing).cpu(), heats, files, strict=True):
        image = to_image(pixels)
        pair = Image.new("RGB", (2 * image.width, image.height))
        pair.paste(image, (0, 0))
        pair.paste(overlay(image, heat), (image.width, 0))
        write_atomically(file, partial(pair.save, format="PNG"))


def usable_device(name: str | None) -> torch.device:
    """The device of that name; the best one present when None.

    Raises:
        UserError: It can't be used.
    """
    try:
        if name:
            return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the device '{name}' can't be used here",
            option="device",
            choices="cpu, or cuda, cuda:1, mps if it has one",
        ) from error
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


# What to classify


def file_split(inputs: list[str]) -> Split:
    """Image files as a split without labels.

    Args:
        inputs: As for `image_files`.

    Raises:
        UserError: As `image_files`.
    """
    files = image_files(inputs)
    return Split(
        "files",
        FileRecords("", list(map(str, files))),
        FileRecords.column,
        np.full(len(files), -1),
        np.arange(len(files)),
    )


def source_split(source: str, name: str) -> Split:
    """A split of a data set.

    Args:
        source: As for ImageDataModule.
        name: As for `split_called`.

    Raises:
        UserError: There is no such data set, or it has no such split.
    """
    return split_called(open_source(source, unlabelled=True).splits, name, source)


def split_called(splits: Mapping[str, Split], name: str, source: str) -> Split:
    """A split by the name that it has in the data set ("validation"), else by its role ("val") or a usual name of that.

    Args:
        splits: By role.
        name: What the user calls it.
        source: What the user calls the data set.

    Raises:
        UserError: There is none.
    """
    roles = [role for role, split in splits.items() if split.name == name]
    roles += [role for role, usual in SPLIT_NAMES.items() if name == role or name.casefold() in usual]
    for role in roles:
        if role in splits:
            return splits[role]
    choices = [role if split.name == role else f"{role} (which is {split.name})" for role, split in splits.items()]
    raise UserError(f"{source} has no {name} split", option="split", choices=" or ".join(choices))


def image_files(inputs: list[str]) -> list[Path]:
    """The image files that the inputs name: files, folders searched through, and patterns; each in alphabetical order.

    Raises:
        UserError: An input does not exist, or a folder or pattern holds no image.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            found, left_out = images_below(path)
            if not found:
                raise UserError(
                    f"the folder {printable(str(path))} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
                )
            if left_out:
                log.info(f"left out of {printable(str(path))}: {left_out}")
            files += found
        elif path.is_file():
            files.append(path)
        elif matches := sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file()):
            files += map(Path, matches)
        else:
            raise UserError(f"there is no file or folder '{path}' to classify")
    return files
