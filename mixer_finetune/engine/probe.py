"""probe: which backbone, block and resolution transfer best to some data, from frozen features, before any training.

All is chosen on the dev split; what is best there is measured once on the test split.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.backbones.resize import METHODS as RESIZES
from mixer_finetune.data.fingerprint import fingerprint
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.parser import MixerCLI
from mixer_finetune.engine.parts import build_data
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.errors import UserError, check_at_least
from mixer_finetune.evaluation.measures import wilson
from mixer_finetune.evaluation.probe_figure import write_probe_figure
from mixer_finetune.evaluation.results import versions
from mixer_finetune.files import write_text
from mixer_finetune.training.features import Extractor, split_features
from mixer_finetune.training.few_shot import SHOTS, few_shot_accuracies
from mixer_finetune.training.logistic import logistic_path
from mixer_finetune.training.neighbours import neighbours_answers
from mixer_finetune.training.precision import use_fast_float32
from mixer_finetune.training.ridge import PATH, Ridge

log = logging.getLogger(__name__)
PRE_LOGITS = "pre-logits"
METHODS = ("ridge", "logistic", "knn")


@dataclass(frozen=True)
class ProbeOptions:
    """What is compared.

    Attributes:
        backbones: As for `load_backbone`.
        image_sizes: Of each backbone; None for its own.
        resizes: How it is brought to them.
        all_blocks: Whether each block is probed beside the pre-logits.
        shots: Images a class of the few-shot tasks; empty for none.
        seeds: Of them.
        device: Where backbones compute.
        precision: "32-true" or "bf16-mixed".
        revision: Of the backbones.
        patch_size: Of the backbones; None for their own.
        in_chans: Likewise.
    """

    backbones: Sequence[str]
    image_sizes: Sequence[int | tuple[int, int] | None] = (None,)
    resizes: Sequence[str] = ("auto",)
    all_blocks: bool = False
    shots: Sequence[int] = SHOTS
    seeds: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "32-true"
    revision: str | None = None
    patch_size: int | None = None
    in_chans: int | None = None


@dataclass
class Row:
    """A layer of a backbone at a size, and how well it does on the dev split.

    Attributes:
        backbone: As it was named.
        image_size: (height, width).
        resize: How the weights were brought to it; None where they are as they were trained.
        layer: "block 1", ..., or "pre-logits".
        dev: Dev accuracy of each method that was tried.
        chosen: The penalty of each regression, or the number of neighbours, that it is of.
        few_shot: Dev accuracies over seeds, by number of shots.
        seconds: By what they were spent on; those of the features stand in the backbone's first row.
    """

    backbone: str
    image_size: tuple[int, int]
    resize: str | None
    layer: str
    dev: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    few_shot: dict[int, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Backbone, size and method, for the user."""
        size = "x".join(map(str, dict.fromkeys(self.image_size)))
        return f"{self.backbone} at {size} px" + (f" ({self.resize})" if self.resize else "")


@dataclass(frozen=True)
class _Layer:
    """Features of a layer on the splits, each with its labels."""

    train: tuple[Tensor, Tensor]
    dev: tuple[Tensor, Tensor]


def probe(cli: MixerCLI, options: ProbeOptions, output: Path | None = None) -> dict[str, Any]:
    """Compare backbones, sizes and layers.

    Args:
        cli: The configuration, of which the data counts.
        options: What is compared.
        output: Folder for probe.json and probe.png; `probes/<date-time>` when None.

    Returns:
        What probe.json holds: `rows`, `best` (on the dev split), `test` (of the best), `left_out`.

    Raises:
        UserError: The data has no dev split, no backbone can be used, or the folder can't be written to.
    """
    check_at_least(1, seeds=options.seeds, shots=min(options.shots, default=None))
    target = output or Path("probes") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if (target / "probe.json").exists() or target.is_file():
        raise UserError(f"{target} holds another probe already", option="output", choices="another folder")
    quiet()
    with interruptible():
        data = build_data(cli)
        if not isinstance(data, ImageDataModule):
            raise UserError("probe needs the images of an ImageDataModule; leave out --data")
        if data.task != "single_label":
            raise UserError("a probe needs one label an image, and these have several", option="data.source")
        data.require("train")
        if "val" not in data.splits:
            advice = "name one with {val_split} or set {val_fraction}"
            raise UserError("a probe is chosen on the dev split, and the data has none", advice=advice)
        if options.device.type == "cpu":
            use_fast_float32()
        left_out: list[str] = []
        planned = _planned(options, left_out)
        log.info(f"data       {data.description}")
        rows = [row for each in planned for row in _probed(_loaded(options, *each), data, options)]
        best, method = _best(rows)
        test = _tested(best, method, data, options) if "test" in data.splits else None
    found = {
        "data": {"source": str(data.source), "description": data.description, "revision": data.revision,
                 **fingerprint(data.label_names, data.splits, data.excluded)},
        "rows": [asdict(row) for row in rows],
        "best": {"row": rows.index(best), "method": method, "dev_accuracy": best.dev[method],
                 "as_good": _as_good(rows, best.dev[method], len(data.splits["val"]))},
        "test": test,
        "left_out": left_out,
        "options": {"precision": options.precision, "device": str(options.device), "shots": list(options.shots),
                    "seeds": options.seeds, "seed_everything": data.seed},
        "versions": versions(),
    }  # fmt: skip
    write_text(target / "probe.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_probe_figure(rows, target / "probe.png", f"Dev accuracy on {data.source}")
    return {**found, "folder": str(target)}


def _planned(options: ProbeOptions, left_out: list[str]) -> list[tuple[str, int | tuple[int, int] | None, str]]:
    """What can be loaded of all backbones, sizes and methods; what can't be had at a size is noted and left out.

    Each is loaded once to see, so that a mistake is found before hours are spent on the others.
    """
    several = len(options.backbones) * len(options.image_sizes) * len(options.resizes) > 1
    planned: list[tuple[str, int | tuple[int, int] | None, str]] = []
    for resize in options.resizes:
        if resize not in RESIZES:
            raise UserError(f"'{resize}' is no way to resize weights", option="resize", choices=" or ".join(RESIZES))
    for source in options.backbones:
        _loaded(options, source, None, "auto")
    for source, size in itertools.product(options.backbones, options.image_sizes):
        for resize in options.resizes:
            try:
                loaded = _loaded(options, source, size, resize)
            except UserError as error:
                if not several:
                    raise
                left_out.append(f"{source} at {size} px by {resize}: {error}")
                log.info(f"left out   {left_out[-1]}")
                continue
            planned.append((source, size, resize))
            if "resized" not in loaded.origin:
                break  # at its own size all methods are the same
    if not planned:
        raise UserError(f"no backbone can be used: {'; '.join(left_out)}")
    return planned


def _loaded(options: ProbeOptions, source: str, size: int | tuple[int, int] | None, resize: str) -> Backbone:
    backbone = load_backbone(
        source,
        image_size=size,
        patch_size=options.patch_size,
        in_chans=options.in_chans,
        resize=resize,
        revision=options.revision,
    )
    return backbone.eval().to(options.device)


def _probed(backbone: Backbone, data: ImageDataModule, options: ProbeOptions) -> list[Row]:
    """Each of its layers by ridge; the best of them and the pre-logits by the other methods, too."""
    resize = backbone.origin.get("resized", {}).get("method")
    started = time.perf_counter()
    layers = _layers(backbone, data, options, ("train", "val"))
    features = time.perf_counter() - started
    names = [f"block {i + 1}" for i in range(len(backbone.blocks))] if options.all_blocks else []
    rows = [Row(backbone.origin["source"], backbone.image_size, resize, name) for name in [*names, PRE_LOGITS]]
    for i, row in enumerate(rows):
        layer = _Layer(layers("train", i), layers("val", i))
        _timed(row, "ridge", partial(_ridge, row, layer, data.num_classes))
    rows[0].seconds["features"] = round(features, 2)
    best = max(range(len(rows)), key=lambda i: rows[i].dev["ridge"])
    for i in sorted({best, len(rows) - 1}):
        layer = _Layer(layers("train", i), layers("val", i))
        _timed(rows[i], "logistic", partial(_logistic, rows[i], layer, data.num_classes, options.device))
        _timed(rows[i], "knn", partial(_knn, rows[i], layer, data.num_classes, options.device))
    if options.shots:
        last = len(rows) - 1
        layer = _Layer(layers("train", last), layers("val", last))
        _timed(rows[last], "few_shot", partial(_few_shot, rows[last], layer, data.num_classes, options))
    seconds = features + sum(sum(row.seconds.values()) for row in rows) - rows[0].seconds["features"]
    log.info(f"probed     {rows[0].name}: {rows[best].layer} {rows[best].dev['ridge']:.2%} by ridge, {seconds:.1f} s "
             f"({features:.1f} s of them for features)")  # fmt: skip
    return rows


def _layers(
    backbone: Backbone, data: ImageDataModule, options: ProbeOptions, roles: Sequence[str]
) -> Callable[[str, int], tuple[Tensor, Tensor]]:
    """Features and labels of the images of a split that could be decoded, by split and layer."""
    data.preprocessing = backbone.preprocessing
    context: Callable[[], Any] = nullcontext
    if options.precision == "bf16-mixed":
        context = partial(torch.autocast, options.device.type, torch.bfloat16)
    extractor = Extractor(backbone, options.device, options.precision, context)
    found = {role: split_features(extractor, data, role, all_blocks=options.all_blocks) for role in roles}
    for role, features in found.items():
        if not len(features.good):
            raise UserError(f"no image of the {role} split could be decoded", option="source")

    def layer(role: str, i: int) -> tuple[Tensor, Tensor]:
        values, labels = found[role].layer(i), torch.from_numpy(data.splits[role].labels)
        if not found[role].bad:
            return values, labels
        good = torch.from_numpy(found[role].good)
        return values[good], labels[good]

    return layer


def _timed(row: Row, what: str, work: Callable[[], None]) -> None:
    started = time.perf_counter()
    work()
    row.seconds[what] = round(time.perf_counter() - started, 2)


def _ridge(row: Row, layer: _Layer, classes: int) -> None:
    ridge = Ridge.fit(*layer.train, classes)
    penalties = [factor * ridge.scale for factor in reversed(PATH)]  # of equally good ones the strongest
    accuracies = ridge.accuracies(*layer.dev, penalties)
    best = int(np.argmax(accuracies))
    row.dev["ridge"], row.chosen["ridge"] = accuracies[best], penalties[best]


def _logistic(row: Row, layer: _Layer, classes: int, device: torch.device) -> None:
    for fitted in logistic_path(*layer.train, classes, device=device):
        accuracy = _share(fitted.predict(layer.dev[0]), layer.dev[1])
        if accuracy > row.dev.get("logistic", -1.0):
            row.dev["logistic"], row.chosen["logistic"] = accuracy, fitted.l2


def _knn(row: Row, layer: _Layer, classes: int, device: torch.device) -> None:
    for k, answers in neighbours_answers(*layer.train, classes, layer.dev[0], device=device).items():
        accuracy = _share(answers, layer.dev[1])
        if accuracy > row.dev.get("knn", -1.0):
            row.dev["knn"], row.chosen["knn"] = accuracy, k


def _few_shot(row: Row, layer: _Layer, classes: int, options: ProbeOptions) -> None:
    (x, labels), (others, answers) = layer.train, layer.dev
    row.few_shot = few_shot_accuracies(
        x, labels.numpy(), classes, others, answers.numpy(), options.shots, options.seeds
    )


def _share(answers: Tensor, labels: Tensor) -> float:
    return float((answers == labels).double().mean())


def _best(rows: list[Row]) -> tuple[Row, str]:
    """The row and the method of the highest dev accuracy.

    Of equally good ones the pre-logits count first, which are what `fit` puts its head on, then fewer pixels.
    """
    pairs = [(row, method) for row in rows for method in METHODS if method in row.dev]

    def rank(pair: tuple[Row, str]) -> tuple[float, bool, int]:
        row, method = pair
        return row.dev[method], row.layer == PRE_LOGITS, -row.image_size[0] * row.image_size[1]

    return max(pairs, key=rank)


def _as_good(rows: list[Row], accuracy: float, images: int) -> int:
    """How many other answers are within one standard error of the best."""
    near = accuracy - (accuracy * (1 - accuracy) / images) ** 0.5
    return len([value for row in rows for value in row.dev.values() if value >= near]) - 1


def _tested(row: Row, method: str, data: ImageDataModule, options: ProbeOptions) -> dict[str, Any]:
    """The best of the dev split, on the test split."""
    backbone = _loaded(options, row.backbone, row.image_size, row.resize or "auto")
    layers = _layers(backbone, data, options, ("train", "test"))
    i = -1 if row.layer == PRE_LOGITS else int(row.layer.removeprefix("block ")) - 1
    (x, labels), (others, wanted) = layers("train", i), layers("test", i)
    chosen, classes = row.chosen[method], data.num_classes
    if method == "ridge":
        right = round(Ridge.fit(x, labels, classes).accuracies(others, wanted, [chosen])[0] * len(wanted))
    elif method == "logistic":
        *_, fitted = (each for each in logistic_path(x, labels, classes, device=options.device) if each.l2 >= chosen)
        right = int((fitted.predict(others) == wanted).sum())
    else:
        answers = neighbours_answers(x, labels, classes, others, [int(chosen)], options.device)
        right = int((answers[int(chosen)] == wanted).sum())
    return {"accuracy": right / len(wanted), "interval": wilson(right, len(wanted)), "images": len(wanted)}
