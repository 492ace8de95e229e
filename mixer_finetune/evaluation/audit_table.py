"""audit.csv: each image that something was found about, once, with what `fit --data.exclude` needs to know it again."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mixer_finetune.evaluation.findings import COPIES, Audited, Finding
from mixer_finetune.files import write_text

COLUMNS = ("exclude", "split", "file", "row", "label", "findings", "suggested", "copy_of", "notes", "digest")


def write_audit_table(findings: Sequence[Finding], audited: Audited, path: Path) -> None:
    """Write the table, its lines in the order in which the page has the images first.

    Args:
        findings: In the order of the page.
        audited: Their images.
        path: Of the file.
    """
    of_image: dict[int, list[Finding]] = {}
    for finding in findings:
        for image in finding.images.tolist():
            of_image.setdefault(image, []).append(finding)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image, found in of_image.items():
        split, _ = audited.place(image)
        suggested = next((each.suggested for each in found if each.suggested is not None), None)
        writer.writerow(
            (
                "yes" if any(image in each.leave_out for each in found) else "no",
                split.name,
                audited.file(image),
                audited.row(image),
                audited.label(image),
                " ".join(dict.fromkeys(each.kind for each in found)),
                "" if suggested is None else audited.label_names[suggested],
                _other(image, found, audited),
                "; ".join(each.note for each in found if each.note),
                audited.digests[image],
            )
        )
    write_text(path, text.getvalue())


def _other(image: int, found: Sequence[Finding], audited: Audited) -> str:
    """The first copy of an image, by its split and file or row."""
    for each in found:
        if each.kind in COPIES:
            other = next(i for i in each.images.tolist() if i != image)
            return f"{audited.place(other)[0].name}: {audited.file(other) or audited.row(other)}"
    return ""
