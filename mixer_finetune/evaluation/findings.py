"""What an audit finds: of which kind, on which images, in which order, and which of them to leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.exclude import names_of
from mixer_finetune.data.sources import Split

# In the order of the page, each with its title.
KINDS = {
    "identical": "Groups of pixel-identical images",
    "near": "Groups of near-identical images",
    "mirrored": "Groups of mirrored images",
    "label": "Likely label errors",
    "outlier": "Outliers",
    "blank": "Blank images",
    "shape": "Images of an odd shape",
    "size": "Images of an odd size",
    "broken": "Images that can't be decoded",
}
COPIES = ("identical", "near", "mirrored")
# What is marked to be left out unless the user says otherwise: where a person would hardly disagree.
EXCLUDED = ("identical", "near", "blank", "broken")
# Whose images stay where several splits have the same one: what is measured on comes first.
_KEPT = ("test", "val", "train")


@dataclass
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: Of `KINDS`.
        images: Positions in all splits, one after the other: of copies all of a group, else a single one.
        score: The lower, the more there is to it.
        note: In words; empty where the kind says all.
        suggested: Class that is likely right, where the label is not.
        leave_out: Those of the images that are marked to be left out.
    """

    kind: str
    images: NDArray[np.int64]
    score: float
    note: str = ""
    suggested: int | None = None
    leave_out: set[int] = field(default_factory=set)


class Audited:
    """The images of all splits, one after the other.

    Args:
        splits: By role.
        label_names: By class number.
        digests: Of each split's files.

    Attributes:
        roles: In their order.
        splits: By role.
        label_names: By class number.
        labels: Of all images, (n,) or (n, K).
        role_of: Number of each image's role, (n,).
        digests: Of each image's file.
    """

    def __init__(self, splits: Mapping[str, Split], label_names: Sequence[str], digests: Sequence[list[str]]) -> None:
        self.splits, self.label_names = dict(splits), list(label_names)
        self.roles = list(splits)
        self._starts = np.cumsum([0, *map(len, splits.values())])
        self.role_of = np.repeat(np.arange(len(self.roles)), np.diff(self._starts))
        self.labels = np.concatenate([split.labels for split in splits.values()])
        self.digests = [digest for each in digests for digest in each]
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def start(self, role: str) -> int:
        """Position of the role's first image."""
        return int(self._starts[self.roles.index(role)])

    def place(self, image: int) -> tuple[Split, int]:
        """An image's split, and its position there."""
        number = int(self.role_of[image])
        return self.splits[self.roles[number]], image - int(self._starts[number])

    def file(self, image: int) -> str:
        """As a table names it; empty where it has no name."""
        role = self.roles[int(self.role_of[image])]
        if role not in self._names:
            self._names[role] = names_of(self.splits[role])
        return self._names[role][self.place(image)[1]]

    def row(self, image: int) -> int:
        """Of the data set."""
        split, i = self.place(image)
        return int(split.rows[i])

    def label_key(self, image: int) -> bytes | int:
        """Equal for images of equal labels."""
        label = self.labels[image]
        return label.tobytes() if self.labels.ndim == 2 else int(label)

    def label(self, image: int) -> str:
        """The name of an image's label, or of all of them."""
        label = self.labels[image]
        if self.labels.ndim == 2:
            return ", ".join(self.label_names[i] for i in np.flatnonzero(label)) or "none"
        return self.label_names[int(label)]

    def marked(self, findings: Sequence[Finding]) -> dict[str, int]:
        """How many images of each role are marked to be left out."""
        marked = {image for finding in findings for image in finding.leave_out}
        counts = np.bincount(self.role_of[sorted(marked)], minlength=len(self.roles))
        return dict(zip(self.roles, counts.tolist(), strict=True))


def sorted_findings(findings: Sequence[Finding], audited: Audited, exclude: Sequence[str]) -> list[Finding]:
    """Findings in the order of the page, with those images marked that are to be left out.

    Of copies, those with two labels come first, then those that stand in several splits.

    Args:
        findings: In any order.
        audited: Their images.
        exclude: Kinds whose images are to be left out.
    """

    def rank(finding: Finding) -> tuple[int, bool, bool, float, int]:
        several_labels = len({audited.label_key(int(i)) for i in finding.images}) > 1
        several_roles = len(set(audited.role_of[finding.images])) > 1
        kind = list(KINDS).index(finding.kind)
        return kind, not several_labels, not several_roles, finding.score, int(finding.images[0])

    for finding in findings:
        if finding.kind in exclude:
            finding.leave_out = _leave_out(finding, audited)
    return sorted(findings, key=rank)


def _leave_out(finding: Finding, audited: Audited) -> set[int]:
    """Which images of a finding not to use.

    What can't be decoded goes from every split; else images that are measured on stay, and so does one of the copies
    of a training image, but for identical ones with different labels, of which nobody knows which is right.
    """
    roles = [audited.roles[number] for number in audited.role_of[finding.images]]
    images = [int(i) for i in finding.images]
    if finding.kind == "broken":
        return set(images)
    if finding.kind not in COPIES:
        return {image for image, role in zip(images, roles, strict=True) if role == "train"}
    kept = min(roles, key=_KEPT.index)
    if kept != "train":
        return {image for image, role in zip(images, roles, strict=True) if role != kept}
    keys = [audited.label_key(image) for image in images]
    same = all(a == b for a, b in pairwise(keys))
    if same:
        return set(images[1:])
    return set(images) if finding.kind == "identical" else set()
