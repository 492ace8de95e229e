"""Folders of images: which files are images, which class and split each belongs to, and what is left out.

    photos/red/1.jpg, photos/blue/2.jpg                       a folder a class
    photos/train/red/1.jpg, photos/Test/blue/2.jpg            splits, by the names of the top folders

Only the top folder has splits, and only where what lies in them are class folders. A file belongs to the class whose
folder it lies in, however deep. Links are followed, each folder once. Files that begin with a dot and what systems
leave behind are passed over without a word; everything else that is not used is counted, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixer_finetune.data.reading import BUNDLED, SPLIT_NAMES, Asked, Label, LabelledFiles
from mixer_finetune.errors import UserError

# Of the formats that Pillow, or the plugins that come with it, decode; in any case.
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .avif .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .tga".split()
)
_ROLES = {name: role for role, names in SPLIT_NAMES.items() for name in names}
ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"))
# Left behind by systems and editors; like hidden files never meant as data.
_LITTER = frozenset(("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "@eadir"))
_WHOLE = "train"  # what a folder without splits is called
_KIND = "one class a folder"
_NAMED = 3  # files or folders that a message names of many


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        images: Paths of image files below it, relative to it, in alphabetical order.
        left_out: Of everything else, the reason by relative path.
    """

    images: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def printable(path: str) -> str:
    """A path as text that can be printed and written: bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_tree(root: str | Path) -> Tree:
    """Walk through a folder, following links to files and folders, each folder once.

    Raises:
        UserError: A folder can't be read.
    """
    tree, seen = Tree(), set()
    pending = [("", str(root))]
    while pending:
        prefix, folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                tree.left_out[prefix.rstrip("/")] = "links to folders that are read already"
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"the folder {printable(folder)} can't be read ({error.strerror})", option="data.source"
            ) from error
        if not found and prefix:
            tree.left_out[prefix.rstrip("/")] = "empty folders"
        folders: list[tuple[str, str]] = []
        links: list[tuple[str, str]] = []
        for entry in found:
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                continue
            path = prefix + entry.name
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((path + "/", entry.path))
            elif not is_image(entry.name):
                tree.left_out[path] = _kind(entry.name)
            elif entry.is_file():
                tree.images.append(path)
            else:
                tree.left_out[path] = "links to files that are not there"
        # The next is the last: real folders in their order, and only then links, which would take their images.
        pending = links[::-1] + pending + folders[::-1]
    tree.images.sort()
    return tree


def _kind(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in ARCHIVES:
        return "archives"
    return f"{suffix} files" if suffix else "files without a suffix"


def read_folder(asked: Asked) -> LabelledFiles | None:
    """The images of a folder by split and class; None where it is no such folder.

    Raises:
        UserError: As `read_image_folder`.
    """
    path = asked.path
    if path is None or not path.is_dir() or asked.source in BUNDLED:
        return None
    return read_image_folder(path, asked.splits)


def read_image_folder(root: str | Path, chosen: Mapping[str, str | None] | None = None) -> LabelledFiles | None:
    """Sort the images of a folder into splits and classes; None where it has none in sub-folders.

    Args:
        root: The folder.
        chosen: Names of top folders to use as "train", "val" and "test", where the usual names do not serve.

    Raises:
        UserError: What is a split and what a class can't be told, or a folder can't be read.
    """
    tree = read_tree(root)
    shown = printable(str(root))
    tops: dict[str, list[str]] = {}
    for path in tree.images:
        top, slash, _ = path.partition("/")
        if slash:
            tops.setdefault(top, []).append(path)
        else:
            tree.left_out[path] = "images beside the class folders"
    if not tops:
        return None
    named = {role: name for role, name in (chosen or {}).items() if name is not None}
    whole = {role for role, name in named.items() if name == _WHOLE and name not in tops}
    roles = None if whole else _roles(shown, tops, named)
    if roles is None:
        if len(tops) == 1:
            _refuse_one_folder(shown, *next(iter(tops.items())))
        labelled: list[tuple[str, Label]] = [(path, path.partition("/")[0]) for path in tree.images if "/" in path]
        splits = {role: (_WHOLE, labelled) for role in whole or {"train"}}
        return LabelledFiles(shown, str(root), splits, _KIND, summary(tree.left_out))

    splits = {}
    for role, top in roles.items():
        pairs: list[tuple[str, Label]] = []
        for path in tops[top]:
            label, slash, _ = path[len(top) + 1 :].partition("/")
            if slash:
                pairs.append((path, label))
            else:
                tree.left_out[path] = f"images in {printable(top)}/ without a class folder"
        if pairs:
            splits[role] = (top, pairs)
        elif role != "test":
            raise UserError(
                f"{shown}/{printable(top)} has {len(tops[top]):,} images, but no class folders", option="data.source"
            )
    for top in set(tops) - set(roles.values()):
        tree.left_out |= dict.fromkeys(tops[top], f"images in {printable(top)}/, which is no split's name")
    return LabelledFiles(shown, str(root), splits, _KIND, summary(tree.left_out))


def _roles(root: str, tops: dict[str, list[str]], named: dict[str, str]) -> dict[str, str] | None:
    """Which top folder plays which role; None where they are classes."""
    with_classes = [top for top in tops if any("/" in path[len(top) + 1 :] for path in tops[top])]
    for role, top in named.items():
        if top not in with_classes:
            problem = f"{root} has no folder '{top}' with class folders in it"
            if with_classes:
                raise UserError(problem, option=f"{role}_split", choices=" or ".join(map(printable, with_classes)))
            raise UserError(f"{problem}, nor any other that could be a split", advice=f"leave out {{{role}_split}}")
    usual: dict[str, list[str]] = {}
    for top in tops:
        usual_role = _ROLES.get(top.casefold())
        if usual_role and usual_role not in named and top not in named.values():
            usual.setdefault(usual_role, []).append(top)
    for role, found in usual.items():
        if len(found) > 1:
            both = " and ".join(map(printable, found))
            raise UserError(f"{root} has several {role} folders: {both}", advice=f"name one with {{{role}_split}}")
    roles = named | {role: found[0] for role, found in usual.items()}
    nested = {top for top in roles.values() if any("/" in path[len(top) + 1 :] for path in tops[top])}
    if named or (nested and (len(roles) > 1 or len(tops) == 1)):
        return roles
    if nested and len(tops) > 1:
        top, others = nested.pop(), ", ".join(printable(other) for other in list(tops)[:_NAMED])
        raise UserError(
            f"{root} has the folders {others}: is {printable(top)} a split or a class?",
            advice=f"name the split with {{train_split}} {printable(top)}, or give the folder another name",
        )
    if len(roles) == len(tops) and "train" in roles:
        top = roles["train"]
        raise UserError(
            f"{root}/{printable(top)} has {len(tops[top]):,} images, but no class folders", option="data.source"
        )
    return None


def _refuse_one_folder(root: str, top: str, paths: list[str]) -> None:
    """Say that there is one class, or that the classes are one folder further down."""
    below = sorted({path.split("/")[1] for path in paths if path.count("/") > 1})
    if len(below) > 1:
        inside = ", ".join(map(printable, below[:_NAMED])) + (", ..." if below[_NAMED:] else "")
        raise UserError(
            f"{root} holds one folder, {printable(top)}, with the folders {inside} in it",
            advice=f"give {{data.source}} {root}/{printable(top)}",
        )
    raise UserError(
        f"{root} has images of one class, {printable(top)}; expected two folders of images or more, one a class",
        option="data.source",
    )


def summary(left_out: dict[str, str]) -> str:
    """What is not used and why, in a line: "2 archives (a.zip, b.zip), 1 .txt file (note.txt)"."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(printable(path))
    parts = []
    for reason, paths in by_reason.items():
        names = ", ".join(sorted(paths)[:_NAMED]) + (", ..." if paths[_NAMED:] else "")
        parts.append(f"{len(paths):,} {reason} ({names})")
    return ", ".join(parts)


class FileRecords:
    """Image files in the place of a `datasets.Dataset` with an image column.

    Args:
        root: Folder that the paths are relative to.
        paths: Of the files.
    """

    column = "image"

    def __init__(self, root: str, paths: list[str]) -> None:
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: list[int]) -> dict[str, list[dict[str, Any]]]:
        return {self.column: [{"bytes": None, "path": os.path.join(self.root, self.paths[row])} for row in rows]}


def images_below(folder: Path) -> tuple[list[Path], str]:
    """All images below a folder, in alphabetical order, and what is left out, in a line.

    Raises:
        UserError: A folder can't be read.
    """
    tree = read_tree(folder)
    return [folder / path for path in tree.images], summary(tree.left_out)
