"""Optimizers and learning rates of the MLP-Mixer paper's fine-tuning (arXiv 2105.01601, section 3 and appendix C)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from mixer_finetune.randomness import DROP_PATH, uniform


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: weight matrices, which decay, and all else, which does not.

    Biases, norms and affine scales are told by what they are (anything but the weight of a linear or convolution), not by
    their number of dimensions: ResMLP's affine scales are (1, 1, C) and must not decay either.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in matrices], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in matrices], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum (the paper's choice for fine-tuning) or AdamW over the trainable parameters."""
    groups = parameter_groups(model, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    return torch.optim.AdamW(groups, lr=lr)


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate at a step: linear warm-up from 0, then cosine decay to 0 at the last step."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def drop_path_factors(rate: float, num_blocks: int, seed: int, step: int, positions: np.ndarray, like: Tensor) -> Tensor:
    """Stochastic depth (arXiv 1603.09382), a function of (seed, step, position in the global batch).

    Args:
        rate: Probability that an image skips a branch of the last block; it grows linearly from 0 at the first.
        num_blocks: Blocks of the backbone.
        seed: Of the run.
        step: Optimizer step.
        positions: Of the images in the global batch, (b,).
        like: Of the device and type wanted.

    Returns:
        (blocks, 2, b): 0 where a branch is skipped, 1 / (1 - rate) where it is kept.
    """
    drop = np.linspace(0, rate, num_blocks)[:, None, None]  # (blocks, 1, 1)
    u = uniform(seed, DROP_PATH, step, positions, 2 * num_blocks)  # (b, 2 blocks)
    kept = u.T.reshape(num_blocks, 2, -1) >= drop
    return torch.from_numpy(kept / (1 - drop)).to(like.dtype).to(like.device, non_blocking=True)
