"""audit: what is wrong with a data set, before anything is trained on it.

decode once -> facts -> identical, near and mirrored copies, images of the wrong kind
features of a frozen backbone -> outliers; a probe on them -> likely label errors
all of it -> audit.html to look at, audit.csv for `fit --data.exclude`, audit.json
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.load import load_backbone
from mixer_finetune.data.copies import NEAR, groups_of, identical, near_pairs
from mixer_finetune.data.facts import Facts, facts_of
from mixer_finetune.data.fingerprint import fingerprint
from mixer_finetune.data.module import ImageDataModule
from mixer_finetune.data.oddities import oddities
from mixer_finetune.engine.interruption import interruptible
from mixer_finetune.engine.parser import MixerCLI
from mixer_finetune.engine.parts import build_data
from mixer_finetune.engine.quiet import quiet
from mixer_finetune.errors import UserError, check_at_least
from mixer_finetune.evaluation.audit_page import write_audit_page
from mixer_finetune.evaluation.audit_table import write_audit_table
from mixer_finetune.evaluation.findings import EXCLUDED, KINDS, Audited, Finding, sorted_findings
from mixer_finetune.evaluation.results import versions
from mixer_finetune.files import write_text
from mixer_finetune.training.features import Extractor, split_features
from mixer_finetune.training.label_errors import find_label_errors
from mixer_finetune.training.out_of_fold import probe_probabilities
from mixer_finetune.training.outliers import REFERENCE, neighbour_distances, unusual
from mixer_finetune.training.precision import use_fast_float32

log = logging.getLogger(__name__)
# Share of right answers of a probe below which its doubts are more often its own mistakes than wrong labels.
WEAK = 0.8
# What would leave images out that are to be audited.
OF_SUBSETS = ("val_fraction", "train_fraction", "images_per_class", "folds", "fold")


@dataclass(frozen=True)
class AuditOptions:
    """How the data is looked at.

    Attributes:
        backbone: As for `load_backbone`.
        image_size: Of it; None for its own.
        near: Largest distance of near-identical images; 0 for none.
        exclude: Kinds of findings that audit.csv is to leave out, as far as `sorted_findings` says which images.
        show: Most findings of a kind with their pictures on the page.
        device: Where the backbone computes.
        precision: "32-true" or "bf16-mixed".
        revision: Of the backbone.
    """

    backbone: str = "mixer_nano"
    image_size: int | tuple[int, int] | None = None
    near: float = NEAR
    exclude: Sequence[str] = EXCLUDED
    show: int = 60
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "32-true"
    revision: str | None = None


def audit(cli: MixerCLI, options: AuditOptions, output: Path | None = None) -> dict[str, Any]:
    """Look at all images of a data set.

    Args:
        cli: The configuration, of which the data counts.
        options: How.
        output: Folder for audit.html, audit.csv and audit.json; `audits/<date-time>` when None.

    Returns:
        What audit.json holds.

    Raises:
        UserError: The data or the backbone can't be used, or the folder holds another audit.
    """
    check_at_least(1, show=options.show)
    check_at_least(0, near=options.near)
    if unknown := [kind for kind in options.exclude if kind not in KINDS]:
        raise UserError(f"there is no finding '{unknown[0]}'", option="exclude", choices=" or ".join(KINDS))
    target = output or Path("audits") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if (target / "audit.json").exists() or target.is_file():
        raise UserError(f"{target} holds another audit already", option="output", choices="another folder")
    quiet()
    with interruptible():
        for name, value in zip(OF_SUBSETS, (0.0, 1.0, None, None, 0), strict=True):
            cli.config[f"data.{name}"] = value
        cli.config["data.on_bad_image"] = "skip"
        data = build_data(cli)
        if not isinstance(data, ImageDataModule):
            raise UserError("audit needs the images of an ImageDataModule; leave out --data")
        if any(split.streamed for split in data.splits.values()):
            raise UserError("an audit reads all images several times", option="stream", choices="false")
        log.info(f"data       {data.description}")
        backbone = load_backbone(options.backbone, image_size=options.image_size, revision=options.revision)
        if options.device.type == "cpu":
            use_fast_float32()
        facts = {role: facts_of(split, _threads(), data.max_image_pixels) for role, split in data.splits.items()}
        audited = Audited(data.splits, data.label_names, [each.digests for each in facts.values()])
        findings = [*_copies(audited, list(facts.values()), options.near), *_odd(list(facts.values()))]
        of_features, notes = _from_features(audited, data, backbone.eval().to(options.device), options)
        findings = sorted_findings([*findings, *of_features], audited, options.exclude)
    counts = {kind: sum(each.kind == kind for each in findings) for kind in KINDS}
    found: dict[str, Any] = {
        "data": {"source": str(data.source), "description": data.description, "revision": data.revision,
                 **fingerprint(data.label_names, data.splits, data.excluded)},
        "findings": counts,
        "shared": _shared(findings, audited),
        "marked": {role: int(n) for role, n in audited.marked(findings).items()},
        "notes": notes,
        "options": {"backbone": backbone.origin, "near": options.near, "exclude": list(options.exclude),
                    "precision": options.precision, "device": str(options.device)},
        "versions": versions(),
    }  # fmt: skip
    write_audit_table(findings, audited, target / "audit.csv")
    write_audit_page(found, findings, audited, target / "audit.html", options.show)
    write_text(target / "audit.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return {**found, "folder": str(target)}


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _copies(audited: Audited, facts: list[Facts], near: float) -> list[Finding]:
    """Identical images, then near and mirrored ones, in each of which one of the identical ones stands for all."""
    same = identical(np.concatenate([each.pixels for each in facts]))
    found = [Finding("identical", group, 0.0) for group in same]
    if near > 0:
        first = np.arange(len(audited))
        for group in same:
            first[group] = group[0]
        alone = np.flatnonzero(first == np.arange(len(audited)))
        small = np.concatenate([each.small for each in facts])[alone]
        for kind, mirrored in (("near", False), ("mirrored", True)):
            pairs, distances = near_pairs(small, near, mirrored)
            group_of = {int(i): n for n, group in enumerate(groups_of(pairs)) for i in group}
            nearest: dict[int, float] = {}
            for (a, _), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
                nearest[group_of[a]] = min(nearest.get(group_of[a], 2.0), distance)
            found += [Finding(kind, alone[group], nearest[n]) for n, group in enumerate(groups_of(pairs))]
    return found


def _odd(facts: list[Facts]) -> list[Finding]:
    return [Finding(kind, np.array([i]), -score, note) for kind, i, score, note in oddities(facts)]


def _from_features(
    audited: Audited, data: ImageDataModule, backbone: Backbone, options: AuditOptions
) -> tuple[list[Finding], list[str]]:
    """Outliers and likely label errors, and what is to be said of how they were found."""
    data.preprocessing = backbone.preprocessing
    context: Any = nullcontext
    if options.precision == "bf16-mixed":
        context = partial(torch.autocast, options.device.type, torch.bfloat16)
    extractor = Extractor(backbone, options.device, options.precision, context)
    found = {role: split_features(extractor, data, role) for role in data.splits}
    at = {role: audited.start(role) + features.good for role, features in found.items()}
    values = {role: features.layer()[torch.from_numpy(features.good)] for role, features in found.items()}
    base = next(iter(data.splits))
    if len(at[base]) < 2:
        return [], [f"too few images of {data.splits[base].name} can be decoded to say more"]
    findings = _outliers(at, values, base, options.device)
    if data.task != "single_label":
        return findings, ["label errors are not looked for: images have several labels"]
    errors, note = _label_errors(audited, at, values, base, data)
    return findings + errors, [note]


def _outliers(
    at: dict[str, NDArray[np.int64]], values: dict[str, Tensor], base: str, device: torch.device
) -> list[Finding]:
    """Images far from those of the training split."""
    features, where = torch.cat(list(values.values())), np.concatenate(list(at.values()))
    reference = np.arange(len(at[base]))  # the first of all
    if len(reference) > REFERENCE:
        reference = np.sort(np.random.default_rng(0).choice(reference, REFERENCE, replace=False))
    distances = neighbour_distances(features, reference, device)
    return [
        Finding("outlier", where[[i]], -float(distances[i]), f"distance {distances[i]:.3f}")
        for i in np.flatnonzero(unusual(distances)).tolist()
    ]


def _label_errors(
    audited: Audited, at: dict[str, NDArray[np.int64]], values: dict[str, Tensor], base: str, data: ImageDataModule
) -> tuple[list[Finding], str]:
    """Labels that a probe would not give which has not seen the image."""
    labels = {role: audited.labels[where] for role, where in at.items()}
    others = {role: features for role, features in values.items() if role != base}
    own, answered, accuracy = probe_probabilities(
        values[base], torch.from_numpy(labels[base]), data.num_classes, others
    )
    findings = []
    for role, probabilities in {base: own, **answered}.items():
        errors = find_label_errors(probabilities, labels[role])
        for i in np.flatnonzero(errors.likely).tolist():
            guess, given = int(errors.suggested[i]), int(labels[role][i])
            note = f"{probabilities[i, guess]:.0%} against {probabilities[i, given]:.0%}"
            findings.append(Finding("label", at[role][[i]], float(errors.confidence[i]), note, guess))
    note = (
        f"label errors are told by a ridge regression on pre-logits which answers {accuracy:.1%} of the images rightly "
        "that it has not seen"
    )
    if accuracy < WEAK:
        note += ": with so weak a probe many are its own mistakes; a backbone that suits the data tells them better"
    return findings, note


def _shared(findings: list[Finding], audited: Audited) -> dict[str, Any]:
    """How many images of each evaluated split stand in train too, identical or nearly, and with another label."""
    shared: dict[str, Any] = {}
    train = audited.roles.index("train") if "train" in audited.roles else None
    for kind in ("identical", "near", "mirrored"):
        for number, role in enumerate(audited.roles):
            images = other = 0
            for finding in findings:
                roles = audited.role_of[finding.images]
                if finding.kind != kind or train is None or number == train or train not in roles:
                    continue
                known = {audited.label_key(int(i)) for i in finding.images[roles == train]}
                here = finding.images[roles == number]
                images += len(here)
                other += sum(audited.label_key(int(i)) not in known for i in here)
            if images:
                shared.setdefault(kind, {})[role] = {"images": images, "with_another_label": other}
    return shared
