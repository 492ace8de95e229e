"""The listing of architectures as a file, so that it can be printed without importing torch."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent
LISTING_FILE = _FOLDER.parent / "assets" / "backbones.json"


def source_hash() -> str:
    """The sha256 of the files that the listing is made from: all of this folder."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def read_listing(path: Path = LISTING_FILE) -> dict[str, Any] | None:
    """What `size.listing` says of each architecture, from the file; None where a source file has changed since."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or not of this layout
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["source_hash"] == source_hash():
            return dict(content["architectures"])
    return None
