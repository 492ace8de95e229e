"""The pieces of HTML that the report is made of."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from PIL import Image

from mixer_finetune.evaluation.mosaics import Pixels, data_uri, mosaic

THUMBNAIL = 160  # pixels
UNITS_A_ROW = 12
_MOST_ROWS = 25  # of a table that does not scroll on its own


def text(value: object) -> str:
    """Any value as text of the page, whatever characters it has."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def code(value: object) -> str:
    """Text in the typewriter face."""
    return f"<code>{text(value)}</code>"


def section(title: str, content: str) -> str:
    """A part of the page under a heading; the content is HTML."""
    return f"<section><h2>{text(title)}</h2>{content}</section>"


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page, which loads nothing: a title and parts, which are HTML."""
    template = Template((files("mixer_finetune.evaluation") / "report_template.html").read_text(encoding="utf-8"))
    return template.substitute(title=text(title), body="\n".join(sections))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, sortable: bool = False) -> str:
    """A table of figures.

    Args:
        head: Names of the columns, as text.
        rows: Cells, as HTML; the first of each row heads it.
        texts: How many columns, from the left, hold text; the others hold numbers.
        sortable: Whether a reader may sort it by its columns.
    """
    kinds = ["" if i < texts else ' class="number"' for i in range(len(head))]
    names = [f'<button type="button">{text(name)}</button>' if sortable else text(name) for name in head]
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for kind, name in zip(kinds, names, strict=True))
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    tall = ' tall" tabindex="0' if len(rows) > _MOST_ROWS else ""
    kind = "figures sortable" if sortable else "figures"
    return (
        f'<div class="scroll{tall}"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def row(items: Sequence[str], kind: str) -> str:
    """Items of HTML side by side, which wrap on a narrow page."""
    return '<div class="row">' + "".join(f'<div class="{kind}">{item}</div>' for item in items) + "</div>"


def card(pictures: Sequence[str], caption: str) -> str:
    """Pictures over a caption, which is HTML."""
    return f"<figure>{''.join(pictures)}<figcaption>{caption}</figcaption></figure>"


def img(image: Image.Image) -> str:
    """A picture as an element: small ones exactly, with their pixels to be seen, larger ones as JPEG."""
    small = max(image.size) < THUMBNAIL / 2
    kind = ' class="small"' if small else ""
    return f'<img{kind} src="{data_uri(image, lossless=small)}" alt="">'


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of at most THUMBNAIL pixels a side."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def sheets(title: str, named: Sequence[tuple[str, Pixels]]) -> str:
    """Mosaics of pictures (n, h, w, 3) side by side, each with its name."""
    pictures = "".join(
        f'<figure><img class="sheet" src="{data_uri(mosaic(units, UNITS_A_ROW))}" alt="{text(f"{title}, {name}")}">'
        f"<figcaption>{text(name)}</figcaption></figure>"
        for name, units in named
    )
    return f'<h3>{text(title)}</h3><div class="row">{pictures}</div>'


def json_script(content: dict[str, Any], element_id: str) -> str:
    """Data for the page's script; no text in it can end the element."""
    inside = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{element_id}">{inside}</script>'


def revision(origin: dict[str, Any]) -> str:
    """The commit of a backbone or data set of the Hub."""
    return f" @ {code(origin['revision'][:12])}" if origin.get("revision") else ""


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
