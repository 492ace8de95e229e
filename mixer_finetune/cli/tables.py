"""Tables on a terminal, whose cells may hold any text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WIDE = 250  # a file has no right margin


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int, whole: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        header: Names of the columns.
        rows: Their cells.
        numbers: The column from which on all are numbers, which stand on the right.
        whole: Columns whose cells are never broken.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table: Any = Table(box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, overflow="fold", justify="right" if i >= numbers else "left", no_wrap=name in whole)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table)
