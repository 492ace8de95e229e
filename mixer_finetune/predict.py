"""predict: labels and probabilities for image files, or for a split of a data set, as a CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.batches import batch_dataset, batch_loader, evaluation_images
from mixer_finetune.data.sampling import EvaluationSampler
from mixer_finetune.data.sources import Split, open_source
from mixer_finetune.errors import UserError
from mixer_finetune.precision import use_fast_float32
from mixer_finetune.publish.results import prediction_cells, prediction_columns
from mixer_finetune.runs import write_atomically

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class _Files:
    """Image files in the place of a `datasets.Dataset`."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __getitem__(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        return {"image": [{"bytes": None, "path": str(self.files[row])} for row in rows]}


def image_files(inputs: list[str]) -> list[Path]:
    """The image files that the inputs name, folders searched through, each in alphabetical order.

    Raises:
        UserError: An input does not exist, or a folder holds no image.
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
    batch_size: int = 64,
    device: str | None = None,
    on_bad_image: str = "error",
) -> int:
    """Classify images and write `output` with a row an image: file, then top-k labels with probabilities.

    Args:
        model: Run folder, checkpoint, model folder or Hub id.
        inputs: Image files and folders of them.
        source: A data set instead, as for ImageDataModule.
        split: Role of its split: "train", "val" or "test".
        output: Path of the CSV.
        top_k: Labels a row, at most one a class.
        batch_size: Images at once.
        device: Where to compute; the best one present when None.
        on_bad_image: "error", or "skip" to leave out what can't be decoded.

    Raises:
        UserError: Something does not exist, or an image can't be decoded.
    """
    if top_k < 1 or batch_size < 1:
        raise UserError(f"--top_k and --batch_size must be 1 or more, got {top_k} and {batch_size}")
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"--on_bad_image must be error or skip, got '{on_bad_image}'")
    if source and inputs:
        raise UserError("give either files or --source, not both")
    images = _split(source, split) if source else _file_split(image_files(inputs))
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"--output {target} can't be written: it must be a file in a folder that exists")

    backbone = load_backbone(model).eval()
    if backbone.num_classes == 0:
        raise UserError(f"{model} has no head: it can't classify")
    names = backbone.label_names or [str(i) for i in range(backbone.num_classes)]
    where = _device(device)
    if where.type == "cpu":
        use_fast_float32()
    backbone.to(where)

    sampler = EvaluationSampler(len(images), batch_size)
    loader = batch_loader(batch_dataset(images, backbone.preprocessing), sampler, num_workers=None)
    k, skipped, count = min(top_k, backbone.num_classes), [], 0

    def write(path: Path) -> None:
        nonlocal count
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", *prediction_columns(k)])
            for batch in loader:
                if batch.bad and on_bad_image == "error":
                    raise UserError(f"{batch.bad[0]}; remove it, or use --on_bad_image skip")
                skipped.extend(batch.bad)
                for index, top, probabilities in _top(backbone, batch, where, k):
                    writer.writerow([images.image_name(index), *prediction_cells(top, probabilities, names)])
                    count += 1

    try:
        write_atomically(target, write)
    except PermissionError as error:
        raise UserError(f"--output {target} can't be written ({error.strerror})") from error
    print(f"wrote {count:,} predictions to {target}" + (f"; skipped {len(skipped)} image(s)" if skipped else ""))
    for reason in skipped[:10]:
        print(f"  skipped: {reason}")
    return 0


@torch.inference_mode()
def _top(backbone: Any, batch: Any, device: torch.device, k: int) -> Iterator[tuple[int, list[int], list[float]]]:
    logits = backbone(evaluation_images(batch._replace(images=batch.images.to(device)), backbone.preprocessing))
    top = logits.float().softmax(-1).topk(k)
    yield from zip(batch.indices.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)


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
        raise UserError(f"--device '{name}' can't be used here: {str(error).splitlines()[0]}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")
