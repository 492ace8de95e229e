"""Names that strangers chose, as text of each medium: none of them can become a command, a formula or a tag there.

terminal    `terminal` and `terminal_line`         figures    `evaluation.figure_text`
Markdown    `markdown` and `markdown_code`         HTML       `evaluation.page.text`
CSV         `csv_cell` and `from_csv_cell`         YAML and JSON by their libraries
"""

from __future__ import annotations

import re

LONGEST_LINE = 2000  # characters of a message; what is longer is no message
# Control characters, among them escape sequences of terminals; line ends that are none of ASCII's; characters that turn
# the direction of writing; bytes of a file name that are not UTF-8.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What begins something in Markdown. Inside a word an underscore begins nothing, and a colon only before slashes.
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~$#@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)
# What a spreadsheet takes for a formula, or leaves out before one; a sign alone is none, and nor is a number.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20].|'", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def cut(text: str, longest: int = LONGEST_LINE) -> str:
    """A text of at most so many characters, and how many there were."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text):,} characters)"


def terminal(text: str) -> str:
    """A text, of several lines perhaps, as a terminal shows it: control characters by their codes."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def terminal_line(text: str) -> str:
    """A message of one line: line ends are escaped, too, and what is far too long is cut."""
    return terminal(cut(text, 2 * LONGEST_LINE)).replace("\n", "\\n")


def markdown(text: str) -> str:
    """A text as Markdown that shows it as it is, in a paragraph or a table: no tags, links, pictures or formulas."""
    return _SPECIAL.sub(r"\\\g<0>", _line(text))


def markdown_code(text: str) -> str:
    """A text in the typewriter face as Markdown; not for tables, whose cells end at `|` in it, too."""
    line = _line(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _line(text: str) -> str:
    return " ".join(_CONTROLS.sub("", " ".join(text.split())).split())


def csv_cell(text: str) -> str:
    """A text as a cell that no spreadsheet computes: one that would be a formula gets an apostrophe in front.

    So does one that begins with an apostrophe, so that `from_csv_cell` gives back every text.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def from_csv_cell(cell: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return cell.removeprefix("'")
