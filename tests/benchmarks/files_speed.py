"""Loading and saving Mixer-B/16: a model folder against timm's build and a Lightning checkpoint with AdamW's states.

    OMP_NUM_THREADS=1 python tests/benchmarks/files_speed.py [--rounds 5]

Medians of wall-clock time, the contenders in turns; files are in the page cache. A run flushes what it writes, so that
a crash of the machine loses nothing, and Lightning by itself does not; so saving is compared in both ways, like with
like.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import TorchCheckpointIO

from mixer_finetune import MixerClassifier, load_backbone, save_model_folder
from mixer_finetune.training.checkpoints import AtomicCheckpointIO

NAME = "mixer_b16_224"


def checkpoint() -> dict:
    """What a Lightning checkpoint holds after a step of AdamW."""
    model = MixerClassifier(NAME, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(torch.randn(1, 3, 224, 224)), torch.zeros(1, dtype=torch.long)).backward()
    optimizer.step()
    version = {"pytorch-lightning_version": pl.__version__, "epoch": 0, "global_step": 1}
    return {**version, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def unflushed(save: Callable[[], None]) -> None:
    """Save without waiting for the disk."""
    with mock.patch("os.fsync"):
        save()


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder, content = Path(name), checkpoint()
        backbone = load_backbone(NAME, num_classes=10)
        runs: dict[str, Callable[[], object]] = {
            "folder, flushed": lambda: save_model_folder(folder / "model", backbone, None),
            "checkpoint, flushed": lambda: AtomicCheckpointIO().save_checkpoint(content, folder / "last.ckpt"),
            "folder": lambda: unflushed(lambda: save_model_folder(folder / "model", backbone, None)),
            "checkpoint": lambda: TorchCheckpointIO().save_checkpoint(content, folder / "lightning.ckpt"),
            "load": lambda: load_backbone(folder / "model"),
            "timm": lambda: timm.create_model(NAME, num_classes=10),
        }
        times: dict[str, list[float]] = {key: [] for key in runs}
        for i in range(rounds + 1):
            for key, run in runs.items():
                begin = time.perf_counter()
                run()
                if i:  # the first round warms up
                    times[key].append(time.perf_counter() - begin)
        size = (folder / "model" / "model.safetensors").stat().st_size / (folder / "last.ckpt").stat().st_size
    median = {key: statistics.median(values) for key, values in times.items()}
    print(f"a folder's build and load take {median['load'] / median['timm']:.2f} of timm's build")
    flushed, not_flushed = (median[f"checkpoint{how}"] / median[f"folder{how}"] for how in (", flushed", ""))
    print(f"a folder has {size:.2f} of a checkpoint's bytes and is saved {flushed:.1f} times as fast")
    print(f"({not_flushed:.1f} times where neither is flushed to disk)")


if __name__ == "__main__":
    main()
