"""What a run saw of its data, so that a resumed run does not go on with other data in silence."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from mixer_finetune.data.classes import listed
from mixer_finetune.data.folders import FileRecords
from mixer_finetune.data.sources import Split


def fingerprint(
    label_names: list[str], splits: dict[str, Split], excluded: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Class names, and of each split its number of images and a hash of its labels and file names, in their order.

    Args:
        label_names: Of the data.
        splits: By role.
        excluded: By role what was left out, as `leave_out` says it; part of the fingerprint where there is any.
    """
    found: dict[str, Any] = {
        "label_names": list(label_names),
        "splits": {role: {"images": len(split), "hash": _hash(split)} for role, split in splits.items()},
    }
    return {**found, "excluded": excluded} if excluded else found


def _hash(split: Split) -> str:
    digest = hashlib.sha256(split.labels.astype("<i8").tobytes())
    if isinstance(split.records, FileRecords):
        for row in split.rows:
            digest.update(split.records.paths[row].encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def images_hash(split: Split) -> str:
    """A hash of which images a split has, in their order; their labels do not count.

    Of a file its path, size and time of change count, so that a large folder is not read; of an image that lies in a
    table, its bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(split), 1024):
        for record in split.image_records(np.arange(start, min(start + 1024, len(split)))):
            content = record.get("bytes")
            if content is None:
                content = _file_facts(os.path.abspath(record["path"])) if record.get("path") else b""
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
    return digest.hexdigest()


def _file_facts(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError:
        return os.fsencode(path)  # named when it is decoded
    return os.fsencode(f"{path}\0{found.st_size} {found.st_mtime_ns}")


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What changed between two fingerprints, for the user; empty where nothing did."""
    changes = []
    gone = [name for name in before["label_names"] if name not in set(now["label_names"])]
    new = [name for name in now["label_names"] if name not in set(before["label_names"])]
    if gone:
        changes.append(f"gone are the classes {listed(gone)}")
    if new:
        changes.append(f"new are the classes {listed(new)}")
    if not changes and before["label_names"] != now["label_names"]:
        changes.append("its classes are in another order")
    for role in sorted({*before["splits"], *now["splits"]}):
        old, fresh = before["splits"].get(role), now["splits"].get(role)
        if old is None or fresh is None:
            changes.append(f"the {role} split is {'new' if old is None else 'gone'}")
        elif old["images"] != fresh["images"]:
            changes.append(f"{role} had {old['images']:,} images and now has {fresh['images']:,}")
        elif old["hash"] != fresh["hash"] and not (gone or new):
            changes.append(f"{role} has other files or labels")
    left_out, now_left_out = before.get("excluded") or {}, now.get("excluded") or {}
    for role in sorted({*left_out, *now_left_out}):
        old, fresh = left_out.get(role, {"images": 0}), now_left_out.get(role, {"images": 0})
        if old["images"] != fresh["images"]:
            changes.append(f"{old['images']:,} images of {role} were left out and now {fresh['images']:,} are")
        elif old != fresh:
            changes.append(f"other images of {role} are left out")
    return "; ".join(changes)
