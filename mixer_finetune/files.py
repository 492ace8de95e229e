"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixer_finetune.errors import UserError

# A full disk, or no right to write.
UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR))
# A temporary file names its writer, so that it can be told whether that one still lives.
_PARTIAL = re.compile(r"\..+\.(?P<host>[^/]+)-(?P<pid>\d+)\.partial")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{socket.gethostname()}-{os.getpid()}.partial"
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
    os.close(descriptor)
    os.umask(mask := os.umask(0))  # only so can it be read
    try:
        write(Path(name))
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def link_to_elsewhere(folder: Path) -> Path | None:
    """A link in a folder, or in the folders in it, that leads out of it; None where there is none."""
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
    return None


def refuse_link(path: Path) -> None:
    """Refuse to write to what is a link to another place: somebody else chose that place.

    Raises:
        UserError: The path is a link.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a link, which is not followed; remove it")


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder and the folders in it."""
    for path in folder.rglob(".*.partial"):
        found = _PARTIAL.fullmatch(path.name)
        if found and found["host"] == socket.gethostname() and not _runs(int(found["pid"])):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
