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
