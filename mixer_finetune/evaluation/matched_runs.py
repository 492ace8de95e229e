"""Runs brought to one order of images and classes, or refused where they are of other ones.

Shapes: n images that all runs answered, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.classes import match_classes
from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.measures import ConfusionMatrix, calibration, intervals, macro_f1
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.results import Results, options_of
from mixer_finetune.evaluation.run_list import run_title
from mixer_finetune.integrity import check_unchanged
from mixer_finetune.runs import RunFolder

_BY_PLACE = re.compile(r".*\[\d+\]")  # what an image without a file is called


@dataclass(frozen=True)
class Compared:
    """A run's answers to the images that are compared.

    Attributes:
        letter: Short name of the run.
        run: Its folder.
        config: Content of its config.yaml.
        results: Of the whole evaluated split.
        found: Its answers to the n images, with the classes numbered as in all runs.
        indices: (n,) positions of the images in the split that this run was evaluated on.
    """

    letter: str
    run: RunFolder
    config: dict[str, Any]
    results: Results
    found: Any
    indices: NDArray[np.int64]

    @property
    def title(self) -> str:
        """Name and time of the run, which is what people know it by."""
        return run_title(self.run, self.config, self.results)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """On the n images, by name."""
        return _metrics(self.found)

    @cached_property
    def measured(self) -> tuple[dict[str, tuple[float, float]], float]:
        """95% intervals of the metrics, and the calibration error."""
        found = self.found
        if isinstance(found, Predictions):
            between, error = intervals(found), calibration(found)[1]
        else:
            # With it comes what computes mean average precision, and takes seconds to import.
            from mixer_finetune.evaluation.label_measures import label_calibration_error, label_intervals

            between, error = label_intervals(found), label_calibration_error(found)
        return {name: between[name] for name in self.metrics if name in between}, error


def _metrics(found: Any) -> dict[str, float]:
    if isinstance(found, Predictions):
        metrics = {
            "accuracy": float(found.right.mean()) if len(found) else 0.0,
            "macro_f1": macro_f1(ConfusionMatrix.of(found)),
        }
        if len(found.names) > found.top.shape[1]:  # else every answer is among them
            metrics["top5_accuracy"] = float(found.within_top.mean()) if len(found) else 0.0
        return metrics
    from mixer_finetune.evaluation.label_measures import label_figures

    figures = label_figures(found)
    areas = [f.average_precision for f in figures if f.average_precision is not None]
    occurring = [f.f1 for i, f in enumerate(figures) if f.images or found.answers[:, i].any()]
    right, both = int((found.answers & found.labels).sum()), int(found.answers.sum() + found.labels.sum())
    return {
        "map": float(np.mean(areas)) if areas else 0.0,
        "macro_f1": float(np.mean(occurring)) if occurring else 0.0,
        "micro_f1": 2 * right / max(both, 1),
        "exact_match": float(found.right.mean()) if len(found) else 0.0,
    }


def read_run(letter: str, run: RunFolder) -> Compared:
    """A run as it was evaluated.

    Args:
        letter: What to call it.
        run: Its folder.

    Raises:
        UserError: It was not, or a file of it is not as the run wrote it.
    """
    results = Results.read(run)
    if not results.metrics:
        raise UserError(f"{run} was not evaluated on any split: there is nothing to compare")
    check_unchanged(run.config_file, run.predictions_file)
    answers: Any = LabelSets if results.task == "multi_label" else Predictions
    found = answers.read(run.predictions_file, results.classes)
    return Compared(letter, run, run.read_config(), results, found, found.indices)


def matched(runs: Sequence[Compared]) -> tuple[list[Compared], list[str]]:
    """Bring runs to one order of images and classes.

    Returns:
        The runs, and what was matched or left out, a line for each.

    Raises:
        UserError: They are of other images, classes or labels.
    """
    first = runs[0]
    for each in runs[1:]:
        if each.results.task != first.results.task:
            kinds = {"single_label": "one label an image", "multi_label": "several labels an image"}
            raise UserError(
                f"{first.run} answers with {kinds[first.results.task]} and {each.run} with "
                f"{kinds[each.results.task]}: they can't be compared"
            )
    notes: list[str] = []
    return _same_images(_same_classes(runs, notes), notes), notes


# Classes


def _same_classes(runs: Sequence[Compared], notes: list[str]) -> list[Compared]:
    """The runs with classes numbered as in the one that has most of them."""
    reference = max(runs, key=lambda each: len(each.found.names))
    found = []
    for each in runs:
        try:
            match = match_classes(each.found.names, reference.found.names, str(each.run), str(reference.run))
        except UserError as error:
            raise UserError(f"{error.problem}: they can't be compared") from error
        if match.note:
            notes.append(match.note)
        found.append(replace(each, found=_renumbered(each.found, match.numbers, reference.found.names)))
    return found


def _renumbered(found: Any, numbers: NDArray[np.int64], names: list[str]) -> Any:
    if isinstance(found, Predictions):
        return replace(found, names=names, labels=numbers[found.labels], top=numbers[found.top])
    labels = np.zeros((len(found), len(names)), bool)
    probabilities = np.zeros((len(found), len(names)))
    labels[:, numbers], probabilities[:, numbers] = found.labels, found.probabilities
    return LabelSets(names, found.files, found.indices, labels, probabilities)


# Images


def _same_images(runs: list[Compared], notes: list[str]) -> list[Compared]:
    """The runs with their answers to the images that all have, in the order of the first."""
    first = runs[0]
    keys = [[image_key(file, each) for file in each.found.files] for each in runs]
    same_order = all(
        other == keys[0] and np.array_equal(each.found.indices, first.found.indices)
        for each, other in zip(runs, keys, strict=True)
    )
    by_place = any(_BY_PLACE.fullmatch(key) for key in keys[0][:1])
    for each in runs[1:]:
        here, there = first.results.data, each.results.data
        if by_place and here["source"] != there["source"]:
            raise _nothing_in_common(first, each)
        if here["source"] != there["source"] or here.get("revision") != there.get("revision"):
            notes.append(f"{each.letter} was measured on {_whose(each)}, {first.letter} on {_whose(first)}")
    if not same_order:
        runs = _matched(runs, keys, notes)
    return _same_labels(runs, notes, strict=by_place)


def _matched(runs: list[Compared], keys: list[list[str]], notes: list[str]) -> list[Compared]:
    """The runs on the images that all have, by name."""
    for each, names in zip(runs, keys, strict=True):
        if len(set(names)) < len(names):
            twice = len(names) - len(set(names))
            raise UserError(
                f"{each.run} has other images than {runs[0].run}, and {twice:,} names of its images stand there more "
                "than once, so the images can't be matched by name"
            )
    places = [{key: i for i, key in enumerate(names)} for names in keys]
    common = [key for key in keys[0] if all(key in place for place in places[1:])]
    if not common:
        apart = [each for each, place in zip(runs, places, strict=True) if not place.keys() & places[0].keys()]
        raise _nothing_in_common(runs[0], (apart or runs[1:])[0])
    sizes = ", ".join(f"{each.letter} has {len(each.found):,}" for each in runs)
    notes.append(f"compared on the {len(common):,} images that all have, matched by name ({sizes})")
    return [_at(each, [place[key] for key in common]) for each, place in zip(runs, places, strict=True)]


def _same_labels(runs: list[Compared], notes: list[str], strict: bool) -> list[Compared]:
    """The runs on the images that have the same label in all."""
    labels = [each.found.labels for each in runs]
    same = np.ones(len(labels[0]), bool)
    for each, other in zip(runs[1:], labels[1:], strict=True):
        agree = (other == labels[0]).reshape(len(other), -1).all(1)
        if not agree.all() and (strict or agree.mean() < 0.5):
            raise UserError(
                f"{int((~agree).sum()):,} of {len(agree):,} images of {each.run} have another label than in "
                f"{runs[0].run}: they are not of the same data, and can't be compared"
            )
        same &= agree
    if same.all():
        return runs
    images = "1 image" if (~same).sum() == 1 else f"{int((~same).sum()):,} images"
    notes.append(f"left out: {images} whose label is not the same in all runs")
    return [_at(each, np.flatnonzero(same).tolist()) for each in runs]


def _at(each: Compared, rows: list[int]) -> Compared:
    """A run at some of its images."""
    found = each.found
    values = {name: getattr(found, name)[rows] for name in ("indices", "labels", "probabilities")}
    if isinstance(found, Predictions):
        values["top"] = found.top[rows]
    found = replace(found, files=[found.files[row] for row in rows], **values)
    return replace(each, found=found, indices=found.indices)


def image_key(file: str, each: Compared) -> str:
    """An image's name without the place of the data on this machine."""
    # As it was typed, which is how the files are called; and with its whole path, as the configuration keeps it.
    for source in (str(each.results.data["source"]), str(options_of(each.config, "data").get("source") or "")):
        if source and file.startswith(place := source.rstrip("/") + "/"):
            return file.removeprefix(place)
    return file


def _nothing_in_common(first: Compared, other: Compared) -> UserError:
    return UserError(
        f"{first.run} and {other.run} have no image in common: the one was measured on {_whose(first)}, the other on "
        f"{_whose(other)}"
    )


def _whose(each: Compared) -> str:
    data = each.results.data
    revision = f" @ {data['revision'][:12]}" if data.get("revision") else ""
    return f"split {each.results.split} of {data['source']}{revision}"
