"""The pieces of HTML that the report is made of."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixer_finetune.evaluation import figures

THUMBNAIL = 160  # pixels
UNITS_A_ROW = 12


def section(title: str, content: str) -> str:
    """A part of the page under a heading."""
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def row(items: Sequence[str], kind: str) -> str:
    """Items side by side, which wrap on a narrow page."""
    return '<div class="row">' + "".join(f'<div class="{kind}">{item}</div>' for item in items) + "</div>"


def card(pictures: list[str], caption: str) -> str:
    """Pictures over a caption, which is HTML."""
    return f"<figure>{''.join(pictures)}<figcaption>{caption}</figcaption></figure>"


def img(image: Image.Image) -> str:
    """A picture as an element: small ones exactly, with their pixels to be seen, larger ones as JPEG."""
    small = max(image.size) < THUMBNAIL / 2
    kind = ' class="small"' if small else ""
    return f'<img{kind} src="{figures.data_uri(image, lossless=small)}" alt="">'


def sheets(title: str, sheets: list[tuple[str, np.ndarray]]) -> str:
    """Mosaics side by side, each with its name."""
    pictures = "".join(
        f'<figure><img class="sheet" src="{figures.data_uri(figures.mosaic(units, UNITS_A_ROW))}" alt="{title}, {name}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, units in sheets
    )
    return f'<h3>{html.escape(title)}</h3><div class="row">{pictures}</div>'


def code(text: str) -> str:
    """Text in the typewriter face."""
    return f"<code>{html.escape(str(text))}</code>"


def revision(origin: dict[str, Any]) -> str:
    """The commit of a backbone or data set of the Hub."""
    return f" @ {code(origin['revision'][:12])}" if origin.get("revision") else ""


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
