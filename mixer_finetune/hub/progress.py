"""What a download says: its size when it begins, and how far it is, twice a minute, where no terminal shows a bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

log = logging.getLogger(__name__)
LINE_SECONDS = 30.0
SAID_FROM_BYTES = 2**20
T = TypeVar("T")


def size_text(size: float) -> str:
    """A number of bytes for a person: "240 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"


def say_download(name: str, size: int | None) -> None:
    """Announce a file that is worth a line.

    Args:
        name: Of the file, and where it comes from.
        size: In bytes; None where nobody says.
    """
    if size is None or size >= SAID_FROM_BYTES:
        log.info(f"downloading {name}" + (f" ({size_text(size)})" if size else ""))


class Pace:
    """Says how far something is, each `LINE_SECONDS` at most.

    Args:
        what: Of the line.
        total: In bytes or pieces; None where it is not known.
        show: Gives a number of them as text.
    """

    def __init__(self, what: str, total: float | None, show: Any = size_text) -> None:
        self.what, self.total, self.show = what, total, show
        self._said = time.monotonic()

    def at(self, done: float) -> None:
        """Take note of how much is done."""
        if time.monotonic() - self._said < LINE_SECONDS:
            return
        self._said = time.monotonic()
        share = f" of {self.show(self.total)} ({done / self.total:.0%})" if self.total else ""
        log.info(f"{self.what}: {self.show(done)}{share}")


def paced(pieces: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The pieces, with a line on how many have come."""
    pace = Pace(what, total, show=str)
    for done, piece in enumerate(pieces, start=1):
        pace.at(done)
        yield piece


def client_bar() -> type[Any] | None:
    """What huggingface_hub is to show: its own bar in a terminal (None), else lines."""
    if sys.stderr.isatty():
        return None
    from huggingface_hub.utils.tqdm import tqdm

    class Lines(tqdm):
        """A bar that writes lines of the log."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._done = options.get("initial", 0)
            self._pace = Pace(f"downloading {options.get('desc', '')}", options.get("total"))

        def update(self, n: float | None = 1) -> None:
            """Say how far it is, in place of drawing."""
            self._done += n or 0
            self._pace.at(self._done)

    return Lines
