"""Several runs on the same images, compared pair by pair, class by class and image by image.

Shapes: r runs, n images that all of them answered, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.errors import UserError
from mixer_finetune.evaluation.label_sets import LabelSets
from mixer_finetune.evaluation.matched_runs import Compared, image_key, matched, read_run
from mixer_finetune.evaluation.paired import holm, macro_f1_difference, mcnemar, share_difference
from mixer_finetune.evaluation.predictions import Predictions
from mixer_finetune.evaluation.run_list import ListedRun, Seeds, seed_groups
from mixer_finetune.runs import RunFolder

SIGNIFICANT = 0.05
_NOT_SHOWN = ("output_dir", "push")  # options that say nothing about a model
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Pair:
    """A run against the first one.

    Attributes:
        first: Letter of the first run.
        second: Letter of the other one.
        only_first: Images that only the first run answered rightly.
        only_second: Images that only the other one did.
        both_wrong: Images that neither did.
        difference: Of the shares of right answers, the other run's less the first one's.
        interval: Its 95% interval.
        p: Of the exact McNemar test.
        corrected: That, corrected by Holm for as many tests as there are pairs.
        f1: Difference of macro-F1 with its 95% interval; None where images have several labels.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    both_wrong: int
    difference: float
    interval: tuple[float, float]
    p: float
    corrected: float
    f1: tuple[float, tuple[float, float]] | None


@dataclass(frozen=True)
class ClassDifference:
    """A class, and how many of its images each run answered rightly.

    Attributes:
        name: Of the class.
        images: Of the class, of those that are compared.
        right: Of each run.
        p: Of the exact McNemar test on the images of the class, corrected by Holm for the number of classes; None where
            more than two runs are compared.
    """

    name: str
    images: int
    right: tuple[int, ...]
    p: float | None

    @property
    def spread(self) -> float:
        """The largest difference of two recalls."""
        return (max(self.right) - min(self.right)) / self.images


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images.

    Attributes:
        runs: As they were named, r of them.
        notes: What was matched or left out, a line for each.
        files: Names of the n images.
        names: Of the C classes.
    """

    runs: list[Compared]
    notes: list[str]
    files: list[str]
    names: list[str]

    @classmethod
    def of(cls, runs: Sequence[Compared]) -> Comparison:
        """Compare runs that are read.

        Raises:
            UserError: They are of other images, classes or labels.
        """
        same, notes = matched(runs)
        return cls(same, notes, [image_key(file, same[0]) for file in same[0].found.files], same[0].found.names)

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return isinstance(self.runs[0].found, LabelSets)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(r, n) whether a run answered an image rightly; of several labels all of them."""
        return np.stack([each.found.right for each in self.runs])

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each run against the first."""
        first, *others = range(len(self.runs))
        right = self.right
        both = [(right[first], right[i]) for i in others]
        counts = [(int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum())) for a, b in both]
        values = [mcnemar(lost, gained) for lost, gained, _ in counts]
        pairs = []
        for i, (lost, gained, wrong), p, corrected in zip(others, counts, values, holm(values), strict=True):
            one, other = self.runs[first], self.runs[i]
            difference, interval = share_difference(right[first], right[i])
            f1 = None
            if not self.several:
                answers = (one.found.top[:, 0], other.found.top[:, 0])
                f1 = macro_f1_difference(one.found.labels, *answers, len(self.names))
            pairs.append(Pair(one.letter, other.letter, lost, gained, wrong, difference, interval, p, corrected, f1))
        return pairs

    @cached_property
    def classes(self) -> list[ClassDifference]:
        """Classes that have images, those on which the runs differ most first."""
        labels, right = self.runs[0].found.labels, self.right
        per_class: dict[int, NDArray[np.bool_]] = {}  # (r, images of the class) whether each run is right
        if self.several:  # on that label
            rights = np.stack([each.found.answers == each.found.labels for each in self.runs])  # (r, n, C)
            per_class = {int(i): rights[:, labels[:, i], i] for i in np.flatnonzero(labels.any(0))}
        else:
            order = np.argsort(labels, kind="stable")
            there, starts = np.unique(labels[order], return_index=True)
            parts = np.split(order, starts[1:])
            per_class = {int(i): right[:, rows] for i, rows in zip(there, parts, strict=True)}
        values: list[float | None] = [None] * len(per_class)
        if len(self.runs) == 2:
            tests = [mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in per_class.values()]
            values = list(holm(tests))
        rows = [
            ClassDifference(self.names[i], part.shape[1], tuple(part.sum(1).tolist()), p)
            for (i, part), p in zip(per_class.items(), values, strict=True)
        ]
        return sorted(rows, key=lambda row: -row.spread)

    @cached_property
    def differing(self) -> NDArray[np.int64]:
        """Positions of the images that some runs answered rightly and others not, the surest wrong answers first."""
        right = self.right
        (rows,) = np.nonzero(right.any(0) & ~right.all(0))
        sure = np.stack([_sureness(each.found) for each in self.runs])  # (r, n)
        worst = np.where(right, 0, sure).max(0)
        return rows[np.argsort(-worst[rows], kind="stable")]

    @cached_property
    def seeds(self) -> list[Seeds]:
        """Those of the runs that differ by nothing but the seed."""
        return seed_groups([ListedRun.of(each.run) for each in self.runs])

    @cached_property
    def options(self) -> list[tuple[str, list[Any]]]:
        """The options of the configuration that the runs differ in, with the value of each run."""
        flat = [_flat(each.config) for each in self.runs]
        names = dict.fromkeys(name for options in flat for name in options)
        found = [(name, [options.get(name) for options in flat]) for name in names if name not in _NOT_SHOWN]
        return [(name, values) for name, values in found if any(value != values[0] for value in values)]


def compare_runs(paths: Sequence[Any]) -> Comparison:
    """Bring runs to one order of images and classes.

    Args:
        paths: Run folders.

    Raises:
        UserError: Fewer than two runs, a run that is not evaluated, or runs that can't be compared.
    """
    if not 2 <= len(paths) <= len(LETTERS):
        raise UserError(f"compare takes 2 to {len(LETTERS)} runs, got {len(paths)}")
    runs = [RunFolder.open(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    return Comparison.of([read_run(letter, run) for letter, run in zip(LETTERS, runs, strict=False)])


def _sureness(found: Any) -> NDArray[np.float64]:
    """(n,) probability of the answer; of several labels how far the farthest is off."""
    if isinstance(found, Predictions):
        return found.confidence
    off: NDArray[np.float64] = np.abs(found.probabilities - found.labels).max(1)
    return off


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


# In words


def option_text(value: Any) -> str:
    """An option's value as people write it: classes by their names."""
    if isinstance(value, list | tuple):
        return ", ".join(map(option_text, value)) or "none"
    if isinstance(value, Mapping):
        name = str(value.get("class_path", "")).rpartition(".")[2]
        return name or ", ".join(f"{key} {option_text(each)}" for key, each in value.items())
    return str(value)


def verdict(pair: Pair, images: int, first: str, second: str, several: bool = False, tests: int = 1) -> str:
    """Which of two runs is better, and whether that is more than chance.

    Args:
        pair: Of them.
        images: That were compared.
        first: What to call the first run.
        second: What to call the other one.
        several: Whether all labels of an image have to be right.
        tests: How many pairs are tested.
    """
    low, high = (100 * value for value in pair.interval)
    points = f"{100 * pair.difference:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}"
    p = f"p {_equals(pair.p)}" + (
        f", {p_text(pair.corrected)} after Holm's correction for {tests} tests" if tests > 1 else ""
    )
    counts = (
        f"only {second} is right on {pair.only_second:,}, only {first} on {pair.only_first:,} of {images:,} images"
        f" ({points}; exact McNemar test, {p})"
    )
    if several:
        counts += ", an image being right where all its labels are"
    if pair.corrected >= SIGNIFICANT:
        return f"Nothing beyond chance tells {first} and {second} apart: {counts}."
    better, worse = (second, first) if pair.difference > 0 else (first, second)
    return f"{better} is better than {worse}, beyond chance: {counts}."


def p_text(value: float) -> str:
    """A p value as people write it."""
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _equals(value: float) -> str:
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"
