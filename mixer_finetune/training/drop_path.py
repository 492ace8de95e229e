"""Stochastic depth: which branches an image skips, by its position in the global batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.data.batches import Batch
from mixer_finetune.randomness import DROP_PATH, uniform


def drop_path_of(module: Any, batch: Batch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
    """Factors on what each branch adds, (blocks, 2, b), a function of the images' positions in the global batch.

    Args:
        module: A MixerClassifier, in training.
        batch: A micro-batch of b images.
        batch_idx: Of the micro-batch in the epoch.

    Returns:
        None where nothing is dropped.
    """
    options, trainer, count = module.hparams, module.trainer, len(batch[0])
    if not options.drop_path or options.train == "head":
        return None
    first = batch.first if isinstance(batch, Batch) else 0
    if not isinstance(batch, Batch):  # as if all micro-batches had that many images
        turn = batch_idx % trainer.accumulate_grad_batches
        first = (turn * trainer.world_size + trainer.global_rank) * count
    blocks, positions = len(module.backbone.blocks), first + np.arange(count)
    dtype = next(module.backbone.parameters()).dtype
    step, device = module.global_step, batch[0].device
    return drop_path_factors(options.drop_path, blocks, options.seed, step, positions, device, dtype)


def drop_path_factors(
    rate: float,
    num_blocks: int,
    seed: int,
    step: int,
    positions: NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Stochastic depth (arXiv 1603.09382), a function of (seed, step, position in the global batch).

    Args:
        rate: Probability that an image skips a branch of the last block; it grows linearly from 0 at the first.
        num_blocks: Blocks of the backbone.
        seed: Of the run.
        step: Optimizer step.
        positions: Of the images in the global batch, (b,).
        device: Where the factors are wanted.
        dtype: Of the factors.

    Returns:
        (blocks, 2, b): 0 where a branch is skipped, 1 / (1 - rate) where it is kept.
    """
    drop = np.linspace(0, rate, num_blocks)[:, None, None]  # (blocks, 1, 1)
    u = uniform(seed, DROP_PATH, step, positions, 2 * num_blocks)  # (b, 2 blocks)
    kept = u.T.reshape(num_blocks, 2, -1) >= drop
    return torch.from_numpy(kept / (1 - drop)).to(dtype).to(device, non_blocking=True)
