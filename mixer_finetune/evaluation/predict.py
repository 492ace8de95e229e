"""predict: labels and probabilities of image files, or of a split of a data set, streamed to disk."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.augment import denormalize
from mixer_finetune.data.batches import batch_dataset, batch_loader, evaluation_images
from mixer_finetune.data.sampling import EvaluationSampler
from mixer_finetune.data.sources import Split, open_source
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.rows import OUTPUT_SUFFIXES, begin_rows, finish_rows, prediction_columns, row_schema
from mixer_finetune.files import UNWRITABLE, write_atomically
from mixer_finetune.training.precision import use_fast_float32

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PRECISIONS = ("32-true", "bf16-mixed")


class _Files:
    """Image files in the place of a `datasets.Dataset`."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __getitem__(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        return {"image": [{"bytes": None, "path": str(self.files[row])} for row in rows]}


def image_files(inputs: list[str]) -> list[Path]:
    """The image files that the inputs name: files, folders searched through, and patterns; each in alphabetical order.

    Raises:
        UserError: An input does not exist, or a folder or pattern holds no image.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            if not found:
                raise UserError(f"the folder {path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            files += found
        elif path.is_file():
            files.append(path)
        elif matches := sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file()):
            files += map(Path, matches)
        else:
            raise UserError(f"there is no file or folder '{path}' to classify")
    return files


def predict(
    model: str,
    inputs: list[str],
    *,
    source: str | None = None,
    split: str = "test",
    output: str = "predictions.csv",
    top_k: int = 5,
    features: bool = False,
    tta: bool = False,
    explain: str | None = None,
    resume: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    compile: bool = False,
    precision: str = "32-true",
) -> int:
    """Classify images and write `output` with a row an image: file, top-k labels with probabilities, and what went wrong.

    Args:
        model: Run folder, checkpoint, model folder or Hub id.
        inputs: Image files, folders of them and patterns.
        source: A data set instead, as for ImageDataModule.
        split: Role of its split: "train", "val" or "test".
        output: A .csv, .jsonl or .parquet file.
        top_k: Labels a row, at most one a class.
        features: Add the pre-logits, (C,) float32, which needs .jsonl or .parquet.
        tta: Average the probabilities (and features) of the image and its mirror image.
        explain: Folder for a picture of each image beside where the evidence for its first label lies.
        resume: Go on with what an interrupted predict left.
        batch_size: Images at once.
        device: Where to compute; the best one present when None.
        compile: Compile the backbone's blocks with torch.compile first.
        precision: "32-true", or "bf16-mixed", where probabilities differ by about a hundredth.

    Raises:
        UserError: Something does not exist, can't be compiled, or the output can't be written.
    """
    if top_k < 1 or batch_size < 1:
        raise UserError(f"--top_k and --batch_size must be 1 or more, got {top_k} and {batch_size}")
    if precision not in PRECISIONS:
        raise UserError(f"--precision must be {' or '.join(PRECISIONS)}, got '{precision}'")
    if source and inputs:
        raise UserError("give either files or --source, not both")
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"--output {target} can't be written: it must be a file in a folder that exists")
    if target.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}, got {target.name}")
    if features and target.suffix == ".csv":
        raise UserError("--features needs an --output that ends in .jsonl or .parquet")
    if explain and Path(explain).expanduser().is_file():
        raise UserError(f"--explain {explain} is a file: give a folder for the pictures")
    images = _split(source, split) if source else _file_split(image_files(inputs))

    try:
        backbone = load_backbone(model).eval()
    except UserError as error:  # which names the option of fit
        raise UserError(str(error).replace("--model.backbone", "predict's first word")) from error
    if backbone.num_classes == 0:
        raise UserError(f"{model} has no head: it can't classify")
    where = _device(device)
    if where.type == "cpu":
        use_fast_float32()
    if compile:
        backbone.compile_blocks()
    k = min(top_k, backbone.num_classes)
    classifier = _Classifier(backbone.to(where), where, k, tta, precision, pad_to=batch_size if compile else None)
    weights = b"".join(value.detach().cpu().numpy().tobytes() for value in backbone.head.state_dict().values())
    schema = row_schema(k, features, f"{hashlib.sha256(weights).hexdigest()} {precision} tta={tta}")
    part = target.with_name(target.name + ".part")
    try:
        done = begin_rows(part, schema, images, resume)
        rest = images.take(np.arange(done, len(images)), images.name)
        with open(part, "ab") as file:
            folder = Path(explain).expanduser() if explain else None
            for rows in _rows(classifier, rest, batch_size, schema, folder) if len(rest) else ():
                file.write(rows.serialize())
                file.flush()
        bad = finish_rows(part, target)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        kept = f": {part} keeps what is done, for --resume" if part.exists() else ""
        raise UserError(f"--output {target} can't be written ({error.strerror}){kept}") from error
    print(f"wrote {len(images):,} rows to {target}" + (f", {len(bad)} of them images that can't be decoded" if bad else ""))
    for problem in bad[:10]:
        print(f"  {problem}")
    return 2 if len(bad) == len(images) else 0


def _rows(
    classifier: _Classifier, images: Split, batch_size: int, schema: pa.Schema, explain: Path | None
) -> Iterator[pa.RecordBatch]:
    """The rows of each batch, in the order of the images."""
    backbone = classifier.backbone
    names = backbone.label_names or [str(i) for i in range(backbone.num_classes)]
    loader = batch_loader(
        batch_dataset(images, backbone.preprocessing), EvaluationSampler(len(images), batch_size), num_workers=None
    )
    for batch in loader:
        rows: dict[int, dict[str, Any]] = {index: {"error": problem} for index, problem in batch.bad}
        if len(batch.indices):
            ready = evaluation_images(batch._replace(images=batch.images.to(classifier.device)), backbone.preprocessing)
            top, features = classifier(ready)
            for i, index in enumerate(batch.indices.tolist()):
                cells = [cell for j, p in zip(*top[i], strict=True) for cell in (names[int(j)], p)]
                rows[index] = dict(zip(prediction_columns(classifier.k), cells, strict=True))
                if "features" in schema.names:
                    rows[index]["features"] = features[i]
            if explain is not None:
                labels = torch.tensor([classes[0] for classes, _ in top], device=classifier.device)
                files = [explain / f"{Path(images.image_name(i)).stem}_{images.rows[i]:06d}.png" for i in batch.indices]
                _explain(backbone, ready, labels, files)
        ordered = [{"file": images.image_name(index), **rows[index]} for index in sorted(rows)]
        yield pa.RecordBatch.from_pylist(ordered, schema=schema)


@dataclass(frozen=True)
class _Classifier:
    """A backbone that answers in labels.

    Attributes:
        backbone: In evaluation mode, on the device.
        device: Where it computes.
        k: Labels an image.
        tta: Whether to average over the image and its mirror image.
        precision: One of PRECISIONS.
        pad_to: Images of every batch, where the backbone is compiled, so that a smaller last one is not compiled for anew.
    """

    backbone: Backbone
    device: torch.device
    k: int
    tta: bool
    precision: str
    pad_to: int | None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[list[tuple[list[int], list[float]]], np.ndarray]:
        """The k most probable classes and their probabilities, an image each, and the pre-logits (b, C)."""
        count = len(images)
        if self.pad_to:
            images = torch.cat([images, images.new_zeros(self.pad_to - count, *images.shape[1:])])
        views = [images, images.flip(-1)] if self.tta else [images]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            pre_logits = [self.backbone.forward_pre_logits(view) for view in views]
            logits = [self.backbone.head(view) for view in pre_logits]
        probabilities = torch.stack([view.float().softmax(-1) for view in logits]).mean(0)[:count]  # (b, classes)
        top = probabilities.topk(self.k)
        features = torch.stack(pre_logits).float().mean(0)[:count].cpu().numpy()
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True)), features


def _explain(backbone: Backbone, images: Tensor, classes: Tensor, files: list[Path]) -> None:
    """Save each image, as the backbone sees it, beside itself with the evidence for a class over it."""
    from torchvision.transforms.v2.functional import to_pil_image

    from mixer_finetune.evaluation.explain import evidence, overlay

    heats = evidence(backbone, images, classes).cpu().numpy()
    for pixels, heat, file in zip(denormalize(images, backbone.preprocessing).cpu(), heats, files, strict=True):
        image = to_pil_image(pixels)
        pair = Image.new("RGB", (2 * image.width, image.height))
        pair.paste(image, (0, 0))
        pair.paste(overlay(image, heat), (image.width, 0))
        write_atomically(file, lambda path, pair=pair: pair.save(path, "PNG"))  # type: ignore[misc]


def _file_split(files: list[Path]) -> Split:
    return Split("files", _Files(files), "image", np.full(len(files), -1), np.arange(len(files)))


def _split(source: str, role: str) -> Split:
    splits = open_source(source).splits
    if role not in splits:
        raise UserError(f"{source} has no {role} split; --split must be one of {', '.join(splits)}")
    return splits[role]


def _device(name: str | None) -> torch.device:
    try:
        if name:
            return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device '{name}' can't be used here; expected cpu, or cuda, cuda:1, mps if it has one") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")
