"""Processes that compute features, and die or meet each other at a chosen place."""

import os
import signal
import time

import torch

from mixer_finetune import ImageDataModule, load_backbone
from mixer_finetune.training import feature_file, features


def compute(source: str, *, kill_after: int | None = None, slowly: float = 0.0) -> int:
    """Features of all training images, in chunks of 4; says how many images it computed.

    Args:
        source: Folder of images.
        kill_after: Chunks after whose computation the process is killed, before the next is written.
        slowly: Seconds that each chunk takes longer.
    """
    torch.set_num_threads(1)
    feature_file.COMMIT_EVERY = 0.0
    backbone = load_backbone("mixer_nano")
    data = ImageDataModule(source, val_fraction=0, eval_batch_size=4, num_workers=0)
    data.preprocessing = backbone.preprocessing
    chunks = 0
    write = feature_file.FeatureFile.write

    def counted(self, chunk, values):
        nonlocal chunks
        if chunks == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(slowly)
        chunks += 1
        write(self, chunk, values)

    feature_file.FeatureFile.write = counted  # type: ignore[method-assign]
    found = features.split_features(features.Extractor(backbone, torch.device("cpu")), data, "train")
    print(found.computed, float(found.values.double().sum()), flush=True)
    return 0


def computed(source: str, kill_after: int | None, slowly: float) -> int:
    """The same with arguments in a row, for a process."""
    return compute(source, kill_after=kill_after, slowly=slowly)
