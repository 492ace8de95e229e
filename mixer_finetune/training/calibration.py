"""calibration.json, a small file beside a model's weights: what the dev split says of how far it can be trusted.

    temperature    what the head was divided by after training
    true           probability of the true label          -> sets of labels with a stated coverage
    confidence     probability of the first label         -> below which the least sure share lies
    familiarity    how much the logits speak for anything -> whether an image is like those of the data at all

Each of the three is a sample of the dev split, kept as its order statistics. Nothing here imports Lightning.

Shapes: n images of the dev split, b of a batch, C classes.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.errors import UserError
from mixer_finetune.files import write_text

FILE = "calibration.json"
# Order statistics that are kept of a sample: all of a small one; of a larger one ranks about 1% apart.
MOST_KEPT = 1000
_DIGITS = 7


@dataclass(frozen=True)
class Sample:
    """Numbers of a dev split by their order, the lowest first.

    Attributes:
        images: n.
        ranks: From 1 to n, ascending: all, or of a large sample some, densest at the low end.
        values: The number at each of these ranks, rounded down.
    """

    images: int
    ranks: list[int]
    values: list[float]

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Sample:
        """Keep a sample, (n,)."""
        ordered, n = np.sort(np.asarray(values, np.float64)), len(values)
        ranks = np.arange(1, n + 1)
        if n > MOST_KEPT:
            ranks = np.unique(np.geomspace(1, n, MOST_KEPT).round().astype(int))
        return cls(n, ranks.tolist(), [_rounded_down(value) for value in ordered[ranks - 1].tolist()])

    def below(self, rank: int) -> float:
        """The number at a rank; where that one is not kept, at the next lower one that is.

        Args:
            rank: 1 or more.
        """
        return self.values[int(np.searchsorted(self.ranks, rank, side="right")) - 1]

    def p_values(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """The p-value of other numbers under the hypothesis that they are of this sample's kind: low ones get low ones.

        It is the share of the sample and the number itself that are no higher than it (rounded up where not all ranks
        are kept), so of numbers of this kind at most a share of p has a p-value of p or less.

        Args:
            values: (b,).

        Returns:
            (b,), above 0 and at most 1.
        """
        at = np.searchsorted(self.values, values, side="right")
        following = np.append(self.ranks, self.images + 1)[at]
        return np.asarray(following / (self.images + 1), np.float64)


@dataclass(frozen=True)
class Calibration:
    """What a dev split says of how far a model can be trusted.

    Attributes:
        task: "single_label" or "multi_label".
        split: Name of the dev split.
        images: Of it, that were looked at.
        temperature: What the trained head's weight and bias were divided by; 1 where they were left as they are.
        why_not: Why they were left; None where they were divided.
        dev: `before` and `after`: mean negative log-likelihood (`nll`) and expected calibration error
            (`calibration_error`) of the dev split; those after by the temperatures of images that are not measured.
        chosen_on_dev: What else was chosen on the dev split ("the best weights"), so that its numbers are a little too
            good; None where nothing was.
        true: Probability of the true label before the temperature; None where an image may have several labels.
        confidence: Probability of the first label after it; None likewise.
        accuracy: Share of right answers among the images of that confidence and more, for each of its ranks.
        familiarity: Minus the energy (Liu et al., arXiv 2010.03759) of the logits before the temperature; of several
            labels the sum of each one's (Wang et al., arXiv 2109.11586).
    """

    task: str
    split: str
    images: int
    temperature: float
    why_not: str | None
    dev: dict[str, dict[str, float]]
    familiarity: Sample
    chosen_on_dev: str | None = None
    true: Sample | None = None
    confidence: Sample | None = None
    accuracy: list[float] | None = None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_text(path, self.json())

    def json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Calibration | None:
        """Read the file; None where there is none.

        Raises:
            UserError: It can't be read.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
            for name in ("true", "confidence", "familiarity"):
                if known.get(name) is not None:
                    known[name] = Sample(**known[name])
            return cls(**known)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} can't be read: {error}") from error

    # Sets of labels

    def set_threshold(self, coverage: float) -> float:
        """The probability from which on a label is in the set (split conformal prediction, the LAC score).

        At least that share of images like the dev split's have their true label in the set: the threshold is the
        floor((n + 1) (1 - coverage))-th smallest probability that the dev split's true labels have. Of all rules with
        that guarantee it gives the smallest sets on average (Sadinle, Lei, Wasserman, arXiv 1609.00451).

        Args:
            coverage: Between 0 and 1.

        Raises:
            UserError: An image may have several labels, or the dev split is too small for that coverage.
        """
        if self.true is None:
            raise UserError(
                "sets with a coverage are for one label an image, and this model gives several",
                advice="leave out {coverage}",
            )
        if not 0 < coverage < 1:
            raise UserError(f"a coverage is between 0 and 1, got {coverage:g}", option="coverage", choices="0.9")
        n = self.true.images
        rank = n + 1 - math.ceil((n + 1) * coverage - 1e-9)
        if rank < 1:
            problem = f"a coverage of {coverage:g} needs more images than the {n:,} of the dev split"
            raise UserError(problem, option="coverage", choices=f"{math.floor(1e4 * n / (n + 1)) / 1e4:g} or less")
        return self.true.below(rank)

    def sets(self, logits: Tensor, threshold: float) -> Tensor:
        """Which labels are in the set of each image, (b, C); the most probable one always is.

        Args:
            logits: (b, C) of the model as it was exported.
            threshold: Of `set_threshold`.
        """
        probabilities = (logits.double() * self.temperature).softmax(-1)
        inside = probabilities >= threshold
        return inside.scatter(1, logits.argmax(-1, keepdim=True), True)

    # Abstaining

    def answering_threshold(self, abstain: float) -> tuple[float, float]:
        """The confidence below which the least sure images of the dev split lie, and the accuracy of the others there.

        Args:
            abstain: Share of images that get no answer, from 0 to below 1.

        Raises:
            UserError: An image may have several labels, or the share is out of range.
        """
        if self.confidence is None or self.accuracy is None:
            raise UserError(
                "abstaining is for one label an image, and this model gives several", advice="leave out {abstain}"
            )
        if not 0 <= abstain < 1:
            raise UserError(f"a share to abstain from is 0 to below 1, got {abstain:g}", option="abstain")
        rank = math.floor(self.confidence.images * abstain + 1e-9) + 1
        at = int(np.searchsorted(self.confidence.ranks, rank, side="right")) - 1
        return self.confidence.values[at], self.accuracy[at]

    # Unlike anything known

    def unfamiliar(self, logits: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How little the logits speak for anything known: the energy, and its p-value among the dev split's.

        Args:
            logits: (b, C) of the model as it was exported.

        Returns:
            (b,) energy, high for what is unlike the data; (b,) p-value, low for it: of images like the dev split's at
            most 5% get 0.05 or less.
        """
        familiar = familiarity(logits.double() * self.temperature, self.task).cpu().numpy()
        return -familiar, self.familiarity.p_values(familiar)


def familiarity(logits: Tensor, task: str) -> Tensor:
    """Minus the energy of logits (b, C), (b,)."""
    return logits.logsumexp(-1) if task == "single_label" else torch.nn.functional.softplus(logits).sum(-1)


def _rounded_down(value: float) -> float:
    """To some digits, so that the file stays small; never above the value."""
    if value == 0 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(abs(value))) - _DIGITS + 1)
    rounded = float(f"{math.floor(value / step) * step:.{_DIGITS}g}")
    return rounded if rounded <= value else math.nextafter(value, -math.inf)
