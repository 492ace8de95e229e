"""validate and test: a run's model, or a checkpoint, measured on a split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixer_finetune.engine.arguments import normalised, take_apart, take_classes
from mixer_finetune.engine.fit import ALREADY_DONE, take_weights_of
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.named_classes import without_objects
from mixer_finetune.engine.parser import MixerCLI, configure
from mixer_finetune.engine.parts import build
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.errors import UserError
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.classifier import MixerClassifier

log = logging.getLogger(__name__)


def configure_evaluation(
    target: str | Path | None, arguments: Sequence[str], checkpoint: str | None = None, *, imports: bool = True
) -> MixerCLI:
    """The configuration of an evaluation: the run's own, and over it what files and options say.

    Args:
        target: Run folder, or a checkpoint.
        arguments: What is typed behind it.
        checkpoint: A checkpoint in place of the run's model.
        imports: Whether foreign classes that files name may be imported.

    Raises:
        UserError: There is no such run or checkpoint, or an option is wrong.
    """
    taken = take_apart(arguments)
    run, weights = None, Path(checkpoint).expanduser() if checkpoint else None
    if target is not None:
        path = Path(target).expanduser()
        if path.is_file() and taken.files:
            weights = weights or path  # the files say what to use it on
        else:
            run, inside = RunFolder.of(path)
            weights = weights or inside
    if weights is not None and not weights.is_file():
        raise UserError(f"there is no checkpoint '{weights}'")
    base: dict[str, object] = {}
    if run is not None:
        base = normalised(run.read_config())
        taken.classes = take_classes(base) | taken.classes
        base = without_objects(base)
        # What shaped the run's backbone is done; what files and options say now asks for another shape.
        base["model"] = {**(base.get("model") or {}), **ALREADY_DONE, "backbone": str(weights or run.model)}  # type: ignore[dict-item]
    cli = configure(taken, base, imports=imports)
    if run is None:
        take_weights_of(cli, str(weights))
    return cli


def evaluate(cli: MixerCLI, role: str) -> dict[str, float]:
    """Metrics on the dev ("val") or test split, logged and returned.

    Raises:
        UserError: The data has no such split, or its classes are not the model's.
    """
    quiet()
    with interruptible():
        parts = build(cli, Path(cli.options.output_dir))
        trainer, model = parts.trainer, parts.model
        data: Any = parts.data
        if isinstance(model, MixerClassifier):
            model.check_trained_task()
        splits = getattr(data, "splits", {})
        if hasattr(data, "require"):
            if role == "test" and role not in splits and "val" in splits:
                problem = f"{data.source} has no test split, so the results of fit are of its dev split"
                raise UserError(problem, advice="evaluate that by `validate`, or name a test split with {test_split}")
            data.require(role)
            data.evaluation_role = role
        trainer.test(model, data, verbose=False)
    metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    if trainer.is_global_zero:
        for name, value in metrics.items():
            log.info(f"{name:<14} {value:.4f}")
        images = len(model.test_table) if model.test_table is not None else 0
        if role in splits:
            whole = f" of {len(splits[role]):,}" if images < len(splits[role]) else ""
            log.info(f"on {images:,}{whole} images of split {splits[role].name} of {data.source}")
    return metrics
