"""What a run's own numbers say about it, as sentences for whoever ran it: pure functions of what was logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Shares of accuracy. Below ten points, train and dev differ in most good runs.
OVERFITTED, AUGMENTED, UNLEARNT = 0.10, 0.02, 0.90
# Relative changes of a loss.
STILL_FALLING, RISEN = 0.03, 0.15
NO_LOSS = 0.02  # below it there is nothing left to learn
MISCALIBRATED = 0.05
FEWEST_IMAGES = 5  # of a class, to say anything about it


@dataclass(frozen=True)
class Epochs:
    """Means of the epochs in which both train and dev were measured.

    Attributes:
        number: Of each epoch, from 1.
        train_loss: Mean loss of training, augmented and regularised as it was.
        train_accuracy: The same for the share of right answers.
        dev_loss: Cross-entropy on the dev split.
        dev_accuracy: Share of right answers there.
    """

    number: list[int]
    train_loss: list[float]
    train_accuracy: list[float]
    dev_loss: list[float]
    dev_accuracy: list[float]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]]) -> Epochs:
        """From the rows of metrics.csv; of an epoch's rows the last counts."""
        # Of several labels an image all must be right.
        right = "val/accuracy" if any("val/accuracy" in row for row in rows) else "val/exact_match"
        names = ("train/loss_epoch", "train/accuracy_epoch", "val/loss", right)
        found: dict[int, list[float]] = {}
        for row in rows:
            if all(row.get(name) for name in names):
                found[int(row["epoch"])] = [float(row[name]) for name in names]
        columns = [list(column) for column in zip(*found.values(), strict=True)] if found else [[], [], [], []]
        return cls(list(found), *columns)


def judge_training(
    rows: Sequence[Mapping[str, str]], guessing: float, lr: float | None = None, ended_by: str | None = "schedule"
) -> list[str]:
    """Sentences on how training went.

    Args:
        rows: Of metrics.csv.
        guessing: Loss of an answer that knows nothing.
        lr: Highest learning rate, where it is known.
        ended_by: What ended the run.

    Returns:
        None to four sentences; none where no dev split was measured.
    """
    epochs = Epochs.of(rows)
    if len(epochs.number) < 2:
        return []
    train, dev = epochs.train_accuracy[-1], epochs.dev_accuracy[-1]
    rate = "" if lr is None else f" of {lr:g}"
    said = []
    if stuck := _stuck(epochs, guessing):
        said.append(
            f"The training loss hardly moved ({stuck}; guessing has {guessing:.2f}): the learning rate{rate} "
            "is too low, or far too high. Try ten times as much, or --model.lr auto."
        )
    elif train < UNLEARNT and train - dev < OVERFITTED / 2:
        said.append(
            f"At the end only {train:.0%} of the training images were answered rightly, so the model has not learnt "
            f"even those: train longer, or raise the learning rate{rate} (--model.lr auto finds one)."
        )
    if not stuck and ended_by == "schedule" and (fall := _still_falling(epochs)):
        said.append(
            f"The dev loss was still falling at the end ({fall}): train longer, with --trainer.max_epochs "
            f"{2 * epochs.number[-1]}."
        )
    lowest = min(range(len(epochs.dev_loss)), key=epochs.dev_loss.__getitem__)
    if epochs.dev_loss[-1] > (1 + RISEN) * epochs.dev_loss[lowest]:
        said.append(
            f"The dev loss was lowest in epoch {epochs.number[lowest]} ({epochs.dev_loss[lowest]:.2f}) and rose to "
            f"{epochs.dev_loss[-1]:.2f}: later epochs learnt the training images by heart. --early_stopping 3 ends "
            "such a run, and --weights best takes the weights from before."
        )
    if train - dev > OVERFITTED:
        said.append(
            f"Training accuracy ({train:.1%}) is far above dev accuracy ({dev:.1%}): more images help most, then "
            "more augmentation (--recipe augment_medium or augment_heavy), --model.label_smoothing 0.1 or "
            "--model.drop_path 0.1."
        )
    elif dev - train > AUGMENTED and not stuck:
        said.append(
            f"Dev accuracy ({dev:.1%}) is above training accuracy ({train:.1%}): that is as it should be, since "
            "training images are augmented and dev images are not."
        )
    return said


def _stuck(epochs: Epochs, guessing: float) -> str:
    """First and last training loss, where they are alike and near guessing; else nothing."""
    first, last = epochs.train_loss[0], epochs.train_loss[-1]
    if min(last, epochs.dev_loss[-1]) > 0.9 * guessing and last > 0.9 * first:
        return f"{first:.2f} to {last:.2f}"
    return ""


def _still_falling(epochs: Epochs) -> str:
    """How the dev loss fell over the last fifth of the epochs, where it did and was lowest at the end; else nothing."""
    back = max(1, len(epochs.number) // 5)
    before, last = epochs.dev_loss[-1 - back], epochs.dev_loss[-1]
    if last == min(epochs.dev_loss) and before > NO_LOSS and (before - last) / before > STILL_FALLING:
        span = "epoch" if back == 1 else f"{back} epochs"
        return f"{before:.2f} to {last:.2f} in the last {span}"
    return ""


def judge_answers(
    right: Mapping[str, tuple[int, int]], calibration_error: float | None = None, confidence: float | None = None
) -> list[str]:
    """Sentences on the answers to the evaluated images.

    Args:
        right: Of each class by name: how many of its images were answered rightly, of how many.
        calibration_error: Expected calibration error.
        confidence: Mean probability of the answers.

    Returns:
        None to two sentences.
    """
    images = sum(n for _, n in right.values())
    if not images:
        return []
    accuracy = sum(hits for hits, _ in right.values()) / images
    said = []
    failing = [
        (hits / n, f"{name} ({hits} of {n})")
        for name, (hits, n) in right.items()
        if n >= FEWEST_IMAGES and hits / n < accuracy / 2
    ]
    if failing:
        shown = ", ".join(text for _, text in sorted(failing)[:5]) + (", ..." if len(failing) > 5 else "")
        which = "One class fails" if len(failing) == 1 else f"{len(failing)} classes fail"
        said.append(
            f"{which} against {accuracy:.0%} over all: {shown}. Look at their images in the report; where a class has "
            "few training images, try --data.sampling balanced."
        )
    if calibration_error is not None and confidence is not None and calibration_error > MISCALIBRATED:
        how = "surer than it is right" if confidence > accuracy else "right more often than it is sure"
        said.append(
            f"Its probabilities are off by {100 * calibration_error:.0f} points on average: it is {how} "
            f"({confidence:.0%} against {accuracy:.0%})."
        )
    return said
