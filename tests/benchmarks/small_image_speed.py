"""Small images to training batches against the usual pipeline, timm's and transformers', interleaved, as ratios.

    OMP_NUM_THREADS=1 python tests/benchmarks/small_image_speed.py SOURCE [--images 20000] [--batch 128] [--rounds 7]
    [--label_column NAME]

SOURCE as for `--data.source`, of images of up to 96 px (CIFAR). The usual pipeline is a map-style data set of PIL
images, torchvision's v2 transforms on each and a DataLoader, without workers. The medians of the process's CPU time;
the peers' passes go over few batches, ours over all. The limit is gathering the batches' bytes and no more.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm.data
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from mixer_finetune import ImageDataModule
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.images import decode
from mixer_finetune.memory import keep_freed_memory

PEER_IMAGES = 1024


class Images(Dataset):
    """Images decoded one by one, as `datasets` and ImageFolder do."""

    def __init__(self, split: Any, transform: Callable) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return min(len(self.split), PEER_IMAGES)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        record = self.split.image_records(np.array([i]))[0]
        return self.transform(decode(record, "image")), int(self.split.labels[i])


def transforms(size: int) -> Iterator[tuple[str, Callable]]:
    """A training transform of each peer."""
    mean = std = (0.5, 0.5, 0.5)
    bicubic = v2.InterpolationMode.BICUBIC
    first = [v2.RandomResizedCrop(size, (0.05, 1), interpolation=bicubic), v2.RandomHorizontalFlip()]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    yield "usual: PIL, v2", v2.Compose([*first, *last])
    timms = {"is_training": True, "scale": (0.05, 1), "color_jitter": 0.0, "interpolation": "bicubic"}
    yield "timm", timm.data.create_transform(size, mean=mean, std=std, **timms)
    first = [v1.RandomResizedCrop(size), v1.RandomHorizontalFlip()]
    yield "transformers' example", v1.Compose([*first, v1.ToTensor(), v1.Normalize(mean, std)])


def main() -> None:
    """Print images per second, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--label_column")
    for name, default in (("images", 20_000), ("batch", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does, here for all
    data = ImageDataModule(
        options.source,
        label_column=options.label_column,
        val_fraction=0,
        batch_size=options.batch,
        preprocessing=Preprocessing(32),
    )
    split = data.splits["train"]
    data.splits["train"] = split.take(np.arange(min(options.images, len(split))), split.name)
    loader = data.train_dataloader()

    def ours() -> int:
        for batch in loader:
            data.prepare(batch, training=True)
        return len(data.splits["train"])

    def gathered() -> int:
        for _ in loader:
            pass
        return len(data.splits["train"])

    def peer(transform: Callable) -> Callable[[], int]:
        images = DataLoader(Images(split, transform), options.batch, shuffle=True)

        def run() -> int:
            return sum(len(batch) for batch, _ in images)

        return run

    runs = {"ours": ours, "gathering alone": gathered} | {name: peer(made) for name, made in transforms(32)}
    each: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            started = time.process_time()
            count = run()
            each[name].append((time.process_time() - started) / count)
    medians = {name: statistics.median(times) for name, times in each.items()}
    for name, median in medians.items():
        print(f"{name:22} {1 / median:9,.0f} images/s; ours {median / medians['ours']:.2f} times as fast")


if __name__ == "__main__":
    main()
