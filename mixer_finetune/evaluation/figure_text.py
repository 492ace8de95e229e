"""Names of classes in figures, where matplotlib would read them as formulas, or has no glyphs for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager

FONT = "DejaVu Sans"  # comes with matplotlib
LONGEST_NAME, LONGEST_TITLE = 40, 100  # characters
# Comes with matplotlib, too: its glyphs are boxes that stand for missing ones.
_NO_FONTS = ("Last Resort",)


class FigureTexts(NamedTuple):
    """Texts that can be drawn.

    Attributes:
        texts: As matplotlib takes them.
        fonts: Families to draw them with, the first that has a glyph.
        numbered: How many names are given by number because no installed font has their characters.
    """

    texts: list[str]
    fonts: list[str]
    numbered: int


def figure_text(text: str, longest: int = LONGEST_NAME) -> str:
    """A text that matplotlib draws as it is, in one line: `$` begins no formula.

    Args:
        text: Any.
        longest: Characters that are kept.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > longest:
        line = line[: longest - 1] + "…"
    return line.replace("$", r"\$")


def figure_texts(names: Sequence[str]) -> FigureTexts:
    """Names of classes for a figure; those that no installed font can draw become "class 3", counted from 0.

    Args:
        names: In the order of the classes.
    """
    texts = [figure_text(name) for name in names]
    fonts, missing = _fonts_for(frozenset("".join(texts)))
    drawn = [f"class {i}" if missing & set(text) else text for i, text in enumerate(texts)]
    return FigureTexts(drawn, list(fonts), sum(bool(missing & set(text)) for text in texts))


def figure_title(text: str) -> tuple[str, list[str]]:
    """A title, with ? for characters that no installed font has, and the fonts to draw it with."""
    title = figure_text(text, LONGEST_TITLE)
    fonts, missing = _fonts_for(frozenset(title))
    return "".join("?" if c in missing else c for c in title), list(fonts)


@cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have the characters between them, and the characters that none has."""
    fonts: tuple[str, ...] = (FONT,)
    missing = characters - _glyphs(font_manager.findfont(FONT))
    found = {family: _glyphs(path) & missing for family, path in _installed()} if missing else {}
    while missing and found:
        best = max(sorted(found), key=lambda family: len(found[family] & missing))
        if not found[best] & missing:
            break
        fonts += (best,)
        missing -= found[best]
    return fonts, missing


def _installed() -> Iterator[tuple[str, str]]:
    """Family and file of each installed font that is upright."""
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal" and not entry.name.startswith(_NO_FONTS):
            yield entry.name, entry.fname


@cache
def _glyphs(path: str) -> frozenset[str]:
    """The characters that a font file has."""
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or of a kind that FreeType does not take
        return frozenset()
