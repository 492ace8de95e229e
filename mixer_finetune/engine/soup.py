"""A greedy soup: the mean of the weights of several runs, as long as the dev split does not mind (arXiv 2203.05482)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.engine.calibrate import calibrate
from mixer_finetune.engine.choose import dev_metrics
from mixer_finetune.engine.evaluate import configure_evaluation
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.parts import Parts, build
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.results import options_of
from mixer_finetune.files import write_text
from mixer_finetune.runs import RunFolder
from mixer_finetune.training.averages import mean_of
from mixer_finetune.training.calibration import FILE, Calibration
from mixer_finetune.training.temperature import fold_into

log = logging.getLogger(__name__)
# Options of the data that say which images are in the dev split.
_DEV_SPLIT = (
    "source", "config", "revision", "train_split", "val_split", "val_fraction", "folds", "fold", "label_column",
    "label_separator", "label_columns",
)  # fmt: skip


def soup(paths: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Average runs, the best on the dev split first, keeping those that make the average no worse there.

    Args:
        paths: Finished runs of the same model and data, that differ in seed, learning rate, augmentation or the like.
        output: Model folder to write.

    Returns:
        What was mixed: `ingredients`, by which metric (`monitor`), and the dev metrics of each run (`runs`) and of the
        `soup`.

    Raises:
        UserError: Fewer than two runs, runs that do not go together, or no dev split.
    """
    if len(paths) < 2:
        raise UserError("a soup needs two runs or more")
    target = Path(output).expanduser()
    if target.exists():
        raise UserError(f"{target} exists already", option="output")
    quiet()
    runs = {str(path): RunFolder.open(path) for path in paths}
    if len({run.path.resolve() for run in runs.values()}) < len(paths):
        raise UserError("a run is named twice")
    models = {name: _as_trained(run) for name, run in runs.items()}
    first = next(iter(runs))
    for name in runs:
        _check_alike(first, models[first], name, models[name])
    with interruptible():
        parts = build(configure_evaluation(first, ["--trainer.devices", "1", "--trainer.strategy", "auto"]), target)
        _check_same_dev_split(parts, {name: run.read_config() for name, run in runs.items()})
        found = _mix(parts, {name: _as_in(parts.model, model) for name, model in models.items()})
        calibration = calibrate(parts, "the runs of the soup")
    save_model_folder(target, parts.model.assembled(), parts.model.label_names)
    if calibration is not None:
        calibration.write(target / FILE)
    write_text(target / "soup.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return found


def _mix(parts: Parts, states: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    monitor = parts.model.task.monitor

    def measured(state: Mapping[str, Tensor]) -> dict[str, float]:
        parts.model.load_state_dict(state)
        return dev_metrics(parts)

    alone = {name: measured(state) for name, state in states.items()}
    order = sorted(states, key=lambda name: (-alone[name][monitor], alone[name]["loss"]))
    chosen, best = [order[0]], alone[order[0]]
    log.info(f"{order[0]}: dev {monitor} {best[monitor]:.2%}, the best alone")
    for name in order[1:]:
        mixed = measured(mean_of([states[each] for each in (*chosen, name)]))
        kept = mixed[monitor] >= best[monitor]
        log.info(
            f"{name}: {alone[name][monitor]:.2%} alone, {mixed[monitor]:.2%} in the soup: {'kept' if kept else 'left'}"
        )
        if kept:
            chosen, best = [*chosen, name], mixed
    parts.model.load_state_dict(mean_of([states[name] for name in chosen]))
    return {"ingredients": chosen, "monitor": monitor, "soup": best, "runs": alone}


def _as_trained(run: RunFolder) -> Backbone:
    """A run's model before its temperature: heads that were divided by different ones do not average."""
    model, calibration = load_backbone(run.model), Calibration.read(run.calibration_file)
    if calibration is not None and isinstance(model.head, nn.Linear):
        fold_into(model.head, 1 / calibration.temperature)
    return model


def _as_in(model: Any, backbone: Backbone) -> dict[str, Tensor]:
    """The weights of a model folder by the names of a classifier."""
    state = backbone.state_dict()
    names = {name: name if name.startswith("head.") else name.removeprefix("backbone.") for name in model.state_dict()}
    return {name: state[inside] for name, inside in names.items()}


def _check_alike(first: str, one: Backbone, name: str, other: Backbone) -> None:
    """Refuse models whose weights have not the same meaning."""
    for what, a, b in (
        ("architecture", one.architecture, other.architecture),
        ("geometry", one.geometry, other.geometry),
        ("task", one.task, other.task),
        ("label names", one.label_names, other.label_names),
        ("pre-processing", one.preprocessing, other.preprocessing),
    ):
        if a != b:
            raise UserError(f"{name} has another {what} than {first}, so their weights can't be averaged")


def _check_same_dev_split(parts: Parts, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse runs that were trained on images which the soup would be chosen by."""
    dev = getattr(parts.data, "splits", {}).get("val")
    if dev is None:
        raise UserError("a soup is chosen on the dev split, and the data has none")
    first, *others = configs
    here = options_of(configs[first], "data")
    carved = dev.name.endswith("(held out)") or " (fold " in dev.name
    for name in others:
        there = options_of(configs[name], "data")
        different = [option for option in _DEV_SPLIT if here.get(option) != there.get(option)]
        if carved and configs[first].get("seed_everything") != configs[name].get("seed_everything"):
            different.append("seed, by which the dev split is held out of train,")
        if different:
            raise UserError(
                f"{name} has another data {different[0].replace('_', ' ')} than {first}, so it may have been trained "
                "on the images that the soup would be chosen by"
            )
