"""Which of a run's weights are evaluated and exported, chosen on the dev split where there are several."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mixer_finetune.backbones.foreign import load_checkpoint
from mixer_finetune.engine.parts import Parts
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.averages import between, share_by_depth

log = logging.getLogger(__name__)
# Shares of the way from the starting to the last weights that are tried: WiSE-FT's of all, LiNeS's of the first block.
BETWEEN = {"wise": tuple(i / 10 for i in range(1, 11)), "lines": tuple(i / 10 for i in range(11))}


def choose_weights(parts: Parts, run: RunFolder) -> tuple[str, dict[str, float] | None]:
    """Put the weights that are asked for into the model.

    Args:
        parts: Of the run, trained.
        run: Its folder.

    Returns:
        The name of the weights, and their metrics on the dev split; None where that is as training left it.
    """
    model, wanted = parts.model, parts.options.weights
    candidates = dict(_candidates(parts, run))
    model.ema = None
    has_dev = bool(parts.data.val_dataloader())
    if len(candidates) == 1 or not has_dev:
        name = str(wanted) if wanted in candidates else "last"
        if len(candidates) > 1:
            log.info(f"no dev split tells whether the average of the weights is better, so the {name} ones are taken")
        model.load_state_dict(candidates[name])
        return name, None
    measured: dict[str, dict[str, float]] = {}
    for name, state in candidates.items():
        model.load_state_dict(state)
        measured[name] = dev_metrics(parts)
    monitor = model.task.monitor
    chosen = max(measured, key=lambda name: (measured[name][monitor], -measured[name]["loss"]))
    model.load_state_dict(candidates[chosen])
    shown = ", ".join(f"{name} {each[monitor]:.1%}" for name, each in measured.items())
    log.info(f"weights    {chosen}, by dev {monitor}, then loss: {shown}")
    return chosen, measured[chosen]


def _candidates(parts: Parts, run: RunFolder) -> Iterator[tuple[str, dict[str, Tensor]]]:
    model, wanted = parts.model, parts.options.weights
    last = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if wanted == "best" and run.best_checkpoint.is_file():
        checkpoint = load_checkpoint(run.best_checkpoint)
        yield "best", checkpoint["state_dict"]
        if "ema" in checkpoint:
            average = checkpoint["ema"]["weights"]
            yield "average at the best", _with(checkpoint["state_dict"], average)
        return
    if wanted == "best":
        log.info("no validation took place, so the last weights stand for the best")
    if wanted in BETWEEN:
        start, blocks = load_file(run.starting_weights), len(model.backbone.blocks)
        for alpha in BETWEEN[wanted]:
            share = alpha if wanted == "wise" else share_by_depth(alpha, blocks)
            yield "last" if alpha == 1 else f"{wanted} {alpha:g}", between(start, last, share)
    else:
        yield "last", last
    if model.ema is not None:
        yield "average", _with(last, model.ema.as_in(model))


def _with(state: dict[str, Tensor], average: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: average[name].to(value.dtype) if name in average else value for name, value in state.items()}


def dev_metrics(parts: Parts) -> dict[str, float]:
    """Metrics of the model's present weights on the dev split, without a word to callbacks and loggers."""
    trainer: Any = parts.trainer
    callbacks, loggers = trainer.callbacks, trainer.loggers
    trainer.callbacks, trainer.loggers = [], []
    try:
        trainer.validate(parts.model, parts.data, verbose=False)
        return {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers
