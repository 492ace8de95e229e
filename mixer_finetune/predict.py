"""predict: labels and probabilities of image files, or of a split of a data set, streamed to disk.

Rows go to `<output>.part`, an Arrow stream that is whole up to its last batch whenever the process dies, and become CSV, JSON
lines or parquet at the end; `resume` goes on behind the last whole batch.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import csv, parquet
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.trunk import Backbone
from mixer_finetune.data.augment import denormalize
from mixer_finetune.data.batches import batch_dataset, batch_loader, evaluation_images
from mixer_finetune.data.sampling import EvaluationSampler
from mixer_finetune.data.sources import Split, open_source
from mixer_finetune.errors import UserError
from mixer_finetune.precision import use_fast_float32
from mixer_finetune.publish.results import prediction_columns
from mixer_finetune.runs import UNWRITABLE, write_atomically

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")


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

    Raises:
        UserError: Something does not exist, or the output can't be written.
    """
    if top_k < 1 or batch_size < 1:
        raise UserError(f"--top_k and --batch_size must be 1 or more, got {top_k} and {batch_size}")
    if source and inputs:
        raise UserError("give either files or --source, not both")
    target = Path(output).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"--output {target} can't be written: it must be a file in a folder that exists")
    if target.suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"--output must end in {', '.join(OUTPUT_SUFFIXES)}, got {target.name}")
    if features and target.suffix == ".csv":
        raise UserError("--features needs an --output that ends in .jsonl or .parquet")
    images = _split(source, split) if source else _file_split(image_files(inputs))

    backbone = load_backbone(model).eval()
    if backbone.num_classes == 0:
        raise UserError(f"{model} has no head: it can't classify")
    where = _device(device)
    if where.type == "cpu":
        use_fast_float32()
    backbone.to(where)
    k = min(top_k, backbone.num_classes)
    schema = _schema(k, features)
    part = target.with_name(target.name + ".part")
    try:
        done = _begin(part, schema, images, resume)
        rest = images.take(np.arange(done, len(images)), images.name)
        with open(part, "ab") as file:
            folder = Path(explain).expanduser() if explain else None
            for rows in _rows(backbone, rest, where, batch_size, schema, k, tta, folder) if len(rest) else ():
                file.write(rows.serialize())
                file.flush()
        bad = _finish(part, target)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        kept = f": {part} keeps what is done, for --resume" if part.exists() else ""
        raise UserError(f"--output {target} can't be written ({error.strerror}){kept}") from error
    print(f"wrote {len(images):,} rows to {target}" + (f", {len(bad)} of them images that can't be decoded" if bad else ""))
    for problem in bad[:10]:
        print(f"  {problem}")
    return 0


def _schema(k: int, features: bool) -> pa.Schema:
    columns = [(name, pa.string() if name.startswith("label") else pa.float32()) for name in prediction_columns(k)]
    fields = [("file", pa.string()), *columns, ("error", pa.string())]
    return pa.schema([*fields, ("features", pa.list_(pa.float32()))] if features else fields)


def _begin(part: Path, schema: pa.Schema, images: Split, resume: bool) -> int:
    """Make the stream ready to be appended to; returns how many images are in it already.

    Raises:
        UserError: There is no stream to go on with, or it is of other images or options.
    """
    head = schema.serialize().to_pybytes()
    if not resume:
        if part.exists() and part.stat().st_size > len(head):
            raise UserError(f"{part} is what an interrupted predict left: go on with --resume, or remove it")
        part.write_bytes(head)
        return 0
    if not part.is_file():
        raise UserError(f"there is no {part} to go on with; leave out --resume")
    names: list[str] = []
    with open(part, "rb") as file:
        try:
            stream = pa.ipc.open_stream(file)
            whole = file.tell()
            same = stream.schema == schema
            while True:
                names += stream.read_next_batch().column("file").to_pylist()
                whole = file.tell()
        except (StopIteration, pa.ArrowInvalid, OSError):
            pass  # the end, or a batch that was being written
    if not names:
        part.write_bytes(head)
        return 0
    if not same or len(names) > len(images) or any(images.image_name(i) != name for i, name in enumerate(names)):
        raise UserError(f"{part} is of other images or options; remove it to begin anew")
    with open(part, "rb+") as file:
        file.truncate(whole)
    return len(names)


def _rows(
    backbone: Backbone,
    images: Split,
    where: torch.device,
    batch_size: int,
    schema: pa.Schema,
    k: int,
    tta: bool,
    explain: Path | None,
) -> Iterator[pa.RecordBatch]:
    """The rows of each batch, in the order of the images."""
    names = backbone.label_names or [str(i) for i in range(backbone.num_classes)]
    loader = batch_loader(
        batch_dataset(images, backbone.preprocessing), EvaluationSampler(len(images), batch_size), num_workers=None
    )
    for batch in loader:
        rows: dict[int, dict[str, Any]] = {index: {"error": problem} for index, problem in batch.bad}
        if len(batch.indices):
            ready = evaluation_images(batch._replace(images=batch.images.to(where)), backbone.preprocessing)
            top, found = _classify(backbone, ready, k, tta)
            for i, index in enumerate(batch.indices.tolist()):
                cells = [cell for j, p in zip(*top[i], strict=True) for cell in (names[int(j)], p)]
                rows[index] = dict(zip(prediction_columns(k), cells, strict=True))
                if "features" in schema.names:
                    rows[index]["features"] = found[i]
            if explain is not None:
                labels = torch.tensor([classes[0] for classes, _ in top], device=where)
                files = [explain / f"{Path(images.image_name(i)).stem}_{images.rows[i]:06d}.png" for i in batch.indices]
                _explain(backbone, ready, labels, files)
        ordered = [{"file": images.image_name(index), **rows[index]} for index in sorted(rows)]
        yield pa.RecordBatch.from_pylist(ordered, schema=schema)


@torch.inference_mode()
def _classify(backbone: Backbone, images: Tensor, k: int, tta: bool) -> tuple[list[tuple[list[int], list[float]]], np.ndarray]:
    """The k most probable classes and their probabilities, an image each, and the pre-logits (b, C)."""
    views = [images, images.flip(-1)] if tta else [images]
    pre_logits = [backbone.forward_pre_logits(view) for view in views]
    probabilities = torch.stack([backbone.head(view).float().softmax(-1) for view in pre_logits]).mean(0)  # (b, classes)
    top = probabilities.topk(k)
    features = torch.stack(pre_logits).float().mean(0).cpu().numpy()
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True)), features


def _explain(backbone: Backbone, images: Tensor, classes: Tensor, files: list[Path]) -> None:
    """Save each image, as the backbone sees it, beside itself with the evidence for a class over it."""
    from mixer_finetune.publish.explain import evidence, overlay

    heats = evidence(backbone, images, classes).cpu().numpy()
    for pixels, heat, file in zip(denormalize(images, backbone.preprocessing).cpu(), heats, files, strict=True):
        image = to_pil_image(pixels)
        pair = Image.new("RGB", (2 * image.width, image.height))
        pair.paste(image, (0, 0))
        pair.paste(overlay(image, heat), (image.width, 0))
        write_atomically(file, lambda path, pair=pair: pair.save(path, "PNG"))  # type: ignore[misc]


def _finish(part: Path, target: Path) -> list[str]:
    """Turn the stream into the output, whole or not at all; returns what went wrong with images."""
    problems: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        with open(part, "rb") as file:
            for batch in pa.ipc.open_stream(file):
                problems.extend(problem for problem in batch.column("error").to_pylist() if problem)
                yield batch

    def write(path: Path) -> None:
        with open(part, "rb") as file:
            schema = pa.ipc.open_stream(file).schema
        if target.suffix == ".jsonl":
            with open(path, "w", encoding="utf-8") as lines:
                for batch in batches():
                    for row in batch.to_pylist():
                        filled = {name: value for name, value in row.items() if value is not None}
                        lines.write(json.dumps(filled, ensure_ascii=False) + "\n")
            return
        kind: Any = csv.CSVWriter if target.suffix == ".csv" else parquet.ParquetWriter
        with kind(str(path), schema) as writer:
            for batch in batches():
                writer.write_batch(batch)

    write_atomically(target, write)
    part.unlink()
    return problems


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
