"""The learning rate where nobody gives one: by backbone, optimizer and what is trained, each with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from mixer_finetune.backbones.backbone import Backbone


@dataclass(frozen=True)
class Rate:
    """A rate that was found good.

    Attributes:
        backbones: Beginning of the architectures' names; "" for all.
        optimizer: Its name.
        train: What is trained: "head", "adapter" (in place of weights), or "" for all else.
        lr: The highest learning rate, after the warm-up.
        evidence: Where it comes from.
    """

    backbones: str
    optimizer: str
    train: str
    lr: float
    evidence: str

    @property
    def note(self) -> str:
        """What it is, for the user."""
        return f"{self.lr:g} by default for this backbone, optimizer and what is trained ({self.evidence})"


# The first that fits counts.
RATES = (
    Rate("mixer_nano", "sgd", "head", 0.2, "the best of four on the dev split of digits"),
    Rate("mixer_nano", "sgd", "adapter", 0.1, "with 0.3 it hardly learns; not measured to the end"),
    Rate("mixer_nano", "sgd", "", 0.1, "see docs/training.md"),
    Rate("", "sgd", "head", 0.1, "not measured"),
    Rate("", "sgd", "adapter", 0.01, "that of all weights; not measured"),
    Rate("", "sgd", "", 0.01, "one of the MLP-Mixer paper's four (arXiv 2105.01601, appendix C)"),
    Rate("mixer_nano", "adamw", "adapter", 0.01, "see docs/training.md"),
    Rate("mixer_nano", "adamw", "", 0.003, "see docs/training.md"),
    Rate("mixer_nano", "muon", "", 0.003, "see docs/training.md"),
    Rate("", "adamw", "head", 0.001, "not measured"),
    Rate("", "adamw", "adapter", 0.002, "ten times that of all weights; not measured"),
    Rate("", "adamw", "", 0.0002, "MIIL's of Mixer-B/16 on CIFAR-100"),
    Rate("", "muon", "", 0.0002, "AdamW's; not measured"),
)


def recommended_rate(backbone: Backbone, optimizer: str, train: str) -> Rate:
    """The rate for a backbone, an optimizer by its name, and what is trained."""
    return next(
        rate
        for rate in RATES
        if backbone.architecture.startswith(rate.backbones)
        and rate.optimizer == optimizer
        and rate.train in ("", train)
    )
