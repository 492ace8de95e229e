"""A look at the data before it is trained on: what is likely to make results worse, or better than they are.

Each finding is one line. All of it takes seconds: images are compared by the bytes of their files, not decoded.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mixer_finetune.data.classes import listed
from mixer_finetune.data.sources import Split
from mixer_finetune.images import BadImage, image_size

FEW_IMAGES = 5
IMBALANCE = 10
LONG = 2.0  # times as long as wide
_COMPARED = 300_000  # most images whose bytes are compared
_LOOKED_AT = 200  # images whose size is read
_CHUNK = 1024


def findings(splits: Mapping[str, Split], label_names: Sequence[str], crops: bool = True) -> list[str]:
    """What there is to say of the data, a line each.

    Args:
        splits: By role: "train", "val", "test".
        label_names: By class number.
        crops: Whether evaluation cuts the longer side off.
    """
    lines = []
    if "train" in splits:
        lines += _of_classes(splits["train"], label_names)
        if crops:
            lines += _of_shapes(splits["train"])
    return lines + _of_copies(splits)


def _of_classes(train: Split, label_names: Sequence[str]) -> list[str]:
    counts = train.class_counts(len(label_names))
    lines = []
    known = set(label_names)
    for separator in "" if train.several else ",;|":
        if together := [n for n in label_names if separator in n and {p.strip() for p in n.split(separator)} <= known]:
            lines.append(
                f"{len(together):,} classes join the names of others, such as '{together[0]}': if that is several "
                f"labels an image, say so with --data.label_separator '{separator}'"
            )
    few = [f"{name} ({count})" for name, count in zip(label_names, counts, strict=True) if count < FEW_IMAGES]
    if few:
        lines.append(
            f"{len(few):,} of {len(counts):,} classes have fewer than {FEW_IMAGES} training images: {listed(few)}"
        )
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[least] and counts[most] > IMBALANCE * counts[least]:
        helps = "; --data.sampling balanced or --model.class_weights balanced helps the rare ones"
        lines.append(
            f"the classes are uneven: {label_names[most]} has {counts[most]:,} images, {label_names[least]} has "
            f"{counts[least]:,}{'' if train.several else helps}"
        )
    return lines


def _of_shapes(train: Split) -> list[str]:
    at = np.unique(np.linspace(0, len(train) - 1, min(_LOOKED_AT, len(train))).astype(np.int64))
    long = looked = 0
    for record in train.image_records(at):
        try:
            width, height = image_size(record)
        except BadImage:
            continue  # named when it is decoded
        looked += 1
        long += max(width, height) > LONG * min(width, height)
    if looked and long > looked / 10:
        return [
            f"{long} of {looked} images looked at are more than twice as long as wide, and evaluation sees their "
            "middle; --data.fit pad or squash shows all of them"
        ]
    return []


def _of_copies(splits: Mapping[str, Split]) -> list[str]:
    """Images that are byte for byte the same, in two splits or with two labels."""
    if sum(map(len, splits.values())) > _COMPARED:
        return [f"images are not compared with each other: there are more than {_COMPARED:,}"]
    found: dict[bytes, list[tuple[str, int | bytes]]] = defaultdict(list)  # role and label of each copy
    sizes = Counter(size for split in splits.values() for _, size in _sizes(split))
    for role, split in splits.items():
        at = np.array([i for i, size in _sizes(split) if sizes[size] > 1], np.int64)
        for i, digest in _digests(split, at):
            label = split.labels[i]
            found[digest].append((role, label.tobytes() if split.several else int(label)))
    lines = []
    copies = [places for places in found.values() if len(places) > 1]
    for role in ("test", "val"):
        shared = [[p for p in places if p[0] == role] for places in copies if any(p[0] == "train" for p in places)]
        n = sum(map(len, shared))
        if n:
            labels = [
                {label for where, label in places if where == "train"}
                for places in copies
                if any(p[0] == "train" for p in places) and any(p[0] == role for p in places)
            ]
            other = sum(
                label not in train
                for train, places in zip(labels, (s for s in shared if s), strict=True)
                for _, label in places
            )
            lines.append(
                f"{n:,} of {len(splits[role]):,} images of {splits[role].name} are also in {splits['train'].name}"
                + (f", {other:,} of them with another label" if other else "")
            )
    inside = sum(len({label for where, label in places if where == "train"}) > 1 for places in copies)
    if inside:
        lines.append(f"{inside:,} images stand in {splits['train'].name} with two labels or more")
    return lines


def _sizes(split: Split) -> Iterator[tuple[int, int]]:
    """The length in bytes of each image, by its position."""
    for start in range(0, len(split), _CHUNK):
        at = np.arange(start, min(start + _CHUNK, len(split)))
        for i, record in zip(at.tolist(), split.image_records(at), strict=True):
            content = record.get("bytes")
            try:
                yield i, len(content) if content is not None else os.stat(record["path"]).st_size
            except (OSError, TypeError):
                continue  # named when it is decoded


def _digests(split: Split, at: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(at), _CHUNK):
        chunk = at[start : start + _CHUNK]
        for i, record in zip(chunk.tolist(), split.image_records(chunk), strict=True):
            content = record.get("bytes")
            if content is None:
                try:
                    with open(record["path"], "rb") as file:
                        content = file.read()
                except OSError:
                    continue
            yield i, hashlib.sha256(content).digest()
