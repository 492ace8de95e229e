"""Which images of the training split are trained on, and which are held out: dev splits, folds, fractions, few-shot.

All of it is stratified and a function of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.sampling import stratified_split
from mixer_finetune.data.sources import Split
from mixer_finetune.errors import UserError
from mixer_finetune.randomness import FOLDS, SUBSET, random_bits


@dataclass(frozen=True)
class Subsets:
    """What to take of the training split.

    Attributes:
        val_fraction: Share that is held out where there is no dev split; 0 for none.
        train_fraction: Share of what is left that is trained on.
        images_per_class: Most images of a class that are trained on (few-shot); None for all.
        folds: Parts that the training split is cut into, one of which is the dev split; None for no folds.
        fold: Which of them, from 0.
    """

    val_fraction: float = 0.1
    train_fraction: float = 1.0
    images_per_class: int | None = None
    folds: int | None = None
    fold: int = 0

    def check(self) -> None:
        """Refuse what can't be done.

        Raises:
            UserError: A value is out of range, or two contradict each other.
        """
        if not 0 <= self.val_fraction < 1:
            problem = f"val_fraction must be at least 0 and below 1, got {self.val_fraction}"
            raise UserError(problem, option="val_fraction")
        if not 0 < self.train_fraction <= 1:
            problem = f"train_fraction must be above 0 and at most 1, got {self.train_fraction}"
            raise UserError(problem, option="train_fraction")
        if self.images_per_class is not None and self.images_per_class < 1:
            problem = f"images_per_class must be 1 or more, got {self.images_per_class}"
            raise UserError(problem, option="images_per_class")
        if self.images_per_class is not None and self.train_fraction < 1:
            raise UserError("images_per_class and train_fraction both say what is trained on", option="train_fraction")
        if self.folds is not None and self.folds < 2:
            raise UserError(f"folds must be 2 or more, got {self.folds}", option="folds")
        if not 0 <= self.fold < (self.folds or 1):
            most = f"0 to {self.folds - 1}" if self.folds else "given with {folds}"
            raise UserError(f"there is no fold {self.fold}", advice=f"{{fold}} must be {most}")

    def take(self, splits: dict[str, Split], seed: int) -> tuple[dict[str, Split], list[str]]:
        """The splits with what is held out and left out, and what was done, for the user.

        Args:
            splits: By role, as the data set has them.
            seed: Of the run.

        Raises:
            UserError: Folds are asked for where the data set has a dev split.
        """
        splits = dict(splits)
        notes: list[str] = []
        if "train" not in splits:
            return splits, notes
        if self.folds is not None:
            if "val" in splits:
                problem = f"folds are cut from train, but the data has a dev split, {splits['val'].name}"
                raise UserError(problem, advice="leave out {folds}")
            parts = fold_of_each(splits["train"].strata, self.folds, seed)
            notes.append(_hold_out(splits, parts != self.fold, f"fold {self.fold} of {self.folds}"))
        elif "val" not in splits and self.val_fraction > 0:
            kept, held = stratified_split(splits["train"].strata, self.val_fraction, seed)
            if len(held) and len(kept):
                smallest = np.unique(splits["train"].strata, return_counts=True)[1].min()
                forced = round(self.val_fraction * smallest) == 0
                asked = f", at least one a class, where {self.val_fraction:.0%} was asked for" if forced else ""
                mask = np.zeros(len(held) + len(kept), bool)
                mask[kept] = True
                notes.append(_hold_out(splits, mask, "held out") + asked)
        labels = splits["train"].strata
        if self.images_per_class is not None or self.train_fraction < 1:
            chosen = _chosen(labels, self.images_per_class, self.train_fraction, seed)
            note = f"trained on {len(chosen):,} of {len(labels):,}"
            if self.images_per_class is not None:
                short = int((np.unique(labels, return_counts=True)[1] < self.images_per_class).sum())
                note += f", {self.images_per_class} a class" + (f" ({short} classes have fewer)" if short else "")
            notes.append(note)
            splits["train"] = splits["train"].take(chosen, splits["train"].name)
        return splits, notes


def _hold_out(splits: dict[str, Split], kept: NDArray[np.bool_], why: str) -> str:
    whole = splits["train"]
    held = np.flatnonzero(~kept)
    splits["val"] = whole.take(held, f"{whole.name} ({why})")
    splits["train"] = whole.take(np.flatnonzero(kept), whole.name)
    verb = "are held out" if why == "held out" else f"are the dev split ({why})"
    return f"no dev split, so {len(held):,} of {len(whole):,} {verb}"


def fold_of_each(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample, (n,): each class is spread evenly, and sizes differ by one at most.

    Args:
        labels: Class of each sample, (n,).
        folds: How many.
        seed: Of the run.
    """
    rank = random_bits(seed, FOLDS, 0, np.arange(len(labels)), 1)[:, 0]
    order = np.lexsort((rank, labels))  # class by class, each in random order
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def _chosen(labels: NDArray[np.int64], each: int | None, fraction: float, seed: int) -> NDArray[np.int64]:
    """Positions of the samples that are trained on, ascending; more of them hold all that fewer hold."""
    rank = random_bits(seed, SUBSET, 0, np.arange(len(labels)), 1)[:, 0]
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = each if each is not None else max(round(fraction * len(members)), 1)
        chosen.append(members[np.argsort(rank[members], kind="stable")[:count]])
    return np.sort(np.concatenate(chosen))
