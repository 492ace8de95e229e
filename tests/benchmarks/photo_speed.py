"""Photos to batches against torchvision, timm, transformers' example and decoding alone, interleaved, as ratios.

    OMP_NUM_THREADS=1 python tests/benchmarks/photo_speed.py FOLDER [--images 256] [--batch 32] [--rounds 7]
    [--size 224]

FOLDER holds JPEGs, in folders or not. One process, no workers, the medians of its CPU time; each pass goes over all
images. Everyone resizes bicubically but transformers' example, which is as its authors wrote it: bilinear.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import timm.data
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from mixer_finetune import ImageDataModule
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.memory import keep_freed_memory

MEAN = STD = (0.5, 0.5, 0.5)


def through(loader: DataLoader) -> Callable[[], None]:
    """A pass over a loader."""

    def run() -> None:
        for _ in loader:
            pass

    return run


def ours(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Our loader with and without the preparation of its batches."""
    data = ImageDataModule(
        str(folder),
        val_fraction=0,
        batch_size=options.batch,
        eval_batch_size=options.batch,
        num_workers=0,
        preprocessing=Preprocessing(options.size),
    )
    data.splits["test"] = data.splits["train"]

    def ready(training: bool) -> Callable[[], None]:
        loader = data.train_dataloader() if training else data.eval_dataloader("test")

        def run() -> None:
            for batch in loader:
                data.prepare(batch, training)

        return run

    return {
        "training: ours, ready for the model": ready(True),
        "training: ours, bytes for the device": through(data.train_dataloader()),
        "evaluation: ours, ready for the model": ready(False),
        "evaluation: ours, bytes for the device": through(data.eval_dataloader("test")),
    }


def torchvisions(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """ImageFolder with v2 transforms on PIL images, as torchvision's documentation has it."""
    bicubic = v2.InterpolationMode.BICUBIC
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    training = [v2.RandomResizedCrop(options.size, (0.05, 1), interpolation=bicubic), v2.RandomHorizontalFlip()]
    whole = int(options.size / 0.875)
    evaluation = [v2.Resize(whole, interpolation=bicubic), v2.CenterCrop(options.size)]
    return {
        f"{name}: torchvision": through(
            DataLoader(ImageFolder(str(folder), v2.Compose([*first, *last])), options.batch, shuffle=True)
        )
        for name, first in (("training", training), ("evaluation", evaluation))
    }


def timms(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The transforms and the loader of timm."""

    def of(training: bool) -> Callable[[], None]:
        loader = timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder)),
            (3, options.size, options.size),
            options.batch,
            is_training=training,
            use_prefetcher=False,
            scale=(0.05, 1),
            color_jitter=0.0,
            interpolation="bicubic",
            mean=MEAN,
            std=STD,
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
        )
        return through(loader)

    return {"training: timm": of(True), "evaluation: timm": of(False)}


def transformers(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The steps of transformers' image classification example: `datasets`, its transforms and its collation."""
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    last = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
    compositions = {
        "training": v1.Compose([v1.RandomResizedCrop(options.size), v1.RandomHorizontalFlip(), *last]),
        "evaluation": v1.Compose([v1.Resize(options.size), v1.CenterCrop(options.size), *last]),
    }

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    def loader(composed: v1.Compose) -> DataLoader:
        def transform(examples: dict) -> dict:
            examples["pixel_values"] = [composed(image.convert("RGB")) for image in examples["image"]]
            return examples

        return DataLoader(table.with_transform(transform), options.batch, shuffle=True, collate_fn=collate)

    return {f"{name}: transformers' example": through(loader(one)) for name, one in compositions.items()}


def decoding(files: list[Path]) -> Callable[[], None]:
    """Reading and decoding alone."""

    def run() -> None:
        for file in files:
            decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB)

    return run


def main() -> None:
    """Print images per second, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("images", 256), ("batch", 32), ("rounds", 7), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does, here for all
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(sorted(options.folder.rglob("*.jpg"))[: options.images]):
            target = Path(folder) / "ab"[i % 2] / f"{i:04d}.jpg"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)
        files = sorted(Path(folder).rglob("*.jpg"))
        runs = {"decoding alone": decoding(files)}
        for make in (ours, torchvisions, timms, transformers):
            runs |= make(Path(folder), options)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                started = time.process_time()
                run()
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(files)} photos to {options.size} px, batches of {options.batch}, {torch.get_num_threads()} thread(s)")
    for name, median in medians.items():
        kind = name.split(":")[0]
        line = f"{name:40} {len(files) / median:7,.0f} images/s, {medians['decoding alone'] / median:.2f} of decoding"
        if name != "decoding alone" and "ours" not in name:
            line += f"; ours {median / medians[f'{kind}: ours, ready for the model']:.2f} times as fast"
        print(line)


if __name__ == "__main__":
    main()
