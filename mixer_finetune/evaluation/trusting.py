"""What `predict` adds by a model's calibration.json: sets of labels, answers withheld, images that are unlike the data.

Shapes: b images of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from mixer_finetune.errors import UserError
from mixer_finetune.hub.read import download, is_repo_id
from mixer_finetune.training.calibration import FILE, Calibration

UNFAMILIAR = 0.05  # p-value up to which an image is called unlike the data


@dataclass
class Trust:
    """What is asked of a model's calibration, and a count of what came out.

    Args:
        calibration: Of the model.
        coverage: Share of images whose true label is to be in their set; None for no sets.
        abstain: Share of images, of those like the dev split's, that get no answer; None for an answer to all.
        ood: Whether to say how unlike the data an image is.

    Raises:
        UserError: The dev split or the task can't give that.
    """

    calibration: Calibration
    coverage: float | None = None
    abstain: float | None = None
    ood: bool = False
    _counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("images", "labels", "withheld", "unlike"), 0)
    )

    def __post_init__(self) -> None:
        self._threshold = None if self.coverage is None else self.calibration.set_threshold(self.coverage)
        self._least = None if self.abstain is None else self.calibration.answering_threshold(self.abstain)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        """Of each row, beside its labels."""
        found: list[tuple[str, pa.DataType]] = []
        if self._least is not None:
            found.append(("answer", pa.string()))
        if self._threshold is not None:
            found.append(("set", pa.list_(pa.string())))
        return found + ([("energy", pa.float32()), ("p_familiar", pa.float32())] if self.ood else [])

    @property
    def key(self) -> str:
        """What the values depend on, so that a resumed predict does not mix two kinds."""
        return (
            f" coverage={self.coverage} from {self._threshold} abstain={self.abstain} from {self._least} ood={self.ood}"
        )

    def cells(self, logits: Tensor, probabilities: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """The values of these columns, by name, for each image.

        Args:
            logits: (b, C).
            probabilities: (b, C).
            names: Of the classes.
        """
        logits = logits.float().cpu()
        sure = probabilities.cpu().topk(1)
        rows: list[dict[str, Any]] = [{} for _ in logits]
        if self._least is not None:
            for row, confidence, first in zip(
                rows, sure.values[:, 0].tolist(), sure.indices[:, 0].tolist(), strict=True
            ):
                row["answer"] = names[first] if confidence >= self._least[0] else None
        if self._threshold is not None:
            order = torch.argsort(logits, dim=-1, descending=True, stable=True)
            sizes = self.calibration.sets(logits, self._threshold).sum(-1)  # the most probable ones
            for row, labels, size in zip(rows, order.tolist(), sizes.tolist(), strict=True):
                row["set"] = [names[i] for i in labels[:size]]
        if self.ood:
            for row, energy, p in zip(rows, *self.calibration.unfamiliar(logits), strict=True):
                row["energy"], row["p_familiar"] = float(energy), float(p)
        return rows

    def count(self, batch: pa.RecordBatch) -> None:
        """Take note of written rows."""
        for row in batch.select(["error", *(name for name, _ in self.columns)]).to_pylist():
            if row["error"]:
                continue
            self._counts["images"] += 1
            self._counts["labels"] += len(row.get("set") or ())
            self._counts["withheld"] += self._least is not None and row["answer"] is None
            self._counts["unlike"] += self.ood and row["p_familiar"] <= UNFAMILIAR

    def summary(self) -> list[str]:
        """What the rows mean, and what came out, in lines for the user."""
        counts, known = self._counts, self.calibration
        n, dev, said = counts["images"], f"{known.images:,} images of split {known.split}", []
        if self.coverage is not None and n:
            said.append(
                f"sets of {counts['labels'] / n:.2f} labels on average: of images like those of the data, at least "
                f"{self.coverage:.4g} have their true label in it (split conformal prediction, from {dev})"
            )
            if known.chosen_on_dev:
                said.append(f"  a little fewer, since these images also chose {known.chosen_on_dev}")
        if self._least is not None:
            said.append(
                f"no answer to {counts['withheld']:,} of {n:,} images, those below a confidence of "
                f"{self._least[0]:.3g}; of {dev} that leaves {self._least[1]:.1%} right answers"
            )
        if self.ood:
            said.append(
                f"{counts['unlike']:,} of {n:,} images are unlike those of the data (p_familiar up to {UNFAMILIAR}, as "
                f"of at most {UNFAMILIAR:.0%} of images like them)"
            )
        return said


def calibration_of(model: str, revision: str | None = None) -> Calibration:
    """The calibration.json of a model.

    Args:
        model: Run folder, model folder or Hub id.
        revision: Commit of the Hub repository.

    Raises:
        UserError: It has none, or it can't be read.
    """
    path = Path(model).expanduser()
    if path.is_file():
        advice = "name its run folder, whose model has one"
        raise UserError(f"{model} is a file of weights, and has no {FILE} from a dev split", advice=advice)
    if not path.is_dir() and is_repo_id(model):
        folder, _ = download(model, "model", [(FILE,)], revision, "model")
    else:
        folder = path if (path / "config.json").is_file() else path / "model"
    found = Calibration.read(folder / FILE)
    if found is None:
        raise UserError(
            f"{model} has no {FILE}, which a run with a dev split leaves beside its model",
            advice="leave out {coverage}, {abstain} and {ood}",
        )
    return found
