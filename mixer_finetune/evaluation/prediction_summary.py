"""What predictions say at a glance: the answer to an image in a line, and of many how often each label was given."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from typing import Any

LEAST_SURE = 5
_MOST_LABELS = 20


def answer_line(row: Mapping[str, Any]) -> str:
    """The answer to an image: its label, how sure it is, and what comes second.

    Args:
        row: Of the output: `file`, `label_1`, `probability_1`, ..., `error`; `labels` where an image may have several.
    """
    if row.get("error"):
        return str(row["error"])
    second = f", then {row['label_2']} ({row['probability_2']:.1%})" if row.get("label_2") is not None else ""
    first = f"{row['label_1']} ({row['probability_1']:.1%})"
    if (labels := row.get("labels")) is None:
        return f"{row['file']}: {first}{second}"
    if not labels:
        return f"{row['file']}: no label; nearest {first}{second}"
    sure = {row[f"label_{i}"]: row[f"probability_{i}"] for i in range(1, 1 + len(row)) if row.get(f"label_{i}")}
    return f"{row['file']}: " + ", ".join(f"{name} ({sure[name]:.1%})" if name in sure else name for name in labels)


class Summary:
    """Of rows as they go by: how often each label was given, and which answers are the least sure.

    Attributes:
        images: That were classified.
        counts: Images of each label.
        unlabelled: Images without a label, where an image may have several.
        problems: What went wrong with images, a line for each.
        least_sure: The rows with the least sure answer, the least sure first.
    """

    def __init__(self) -> None:
        self.images, self.unlabelled = 0, 0
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._worst: list[tuple[float, int, Mapping[str, Any]]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row of the output."""
        if row.get("error"):
            self.problems.append(str(row["error"]))
            return
        self.images += 1
        if "labels" in row:
            self.counts.update(row["labels"])
            self.unlabelled += not row["labels"]
            # A label is an answer from one half on, so the nearest to it is the least sure.
            numbers = range(1, 1 + len(row))
            sure = min(abs(p - 0.5) for i in numbers if (p := row.get(f"probability_{i}")) is not None)
        else:
            self.counts[row["label_1"]] += 1
            sure = row["probability_1"]
        item = (-sure, -self.images, row)  # of equally sure ones the first stays
        if len(self._worst) < LEAST_SURE:
            heapq.heappush(self._worst, item)
        else:
            heapq.heappushpop(self._worst, item)

    @property
    def least_sure(self) -> list[Mapping[str, Any]]:
        """The rows with the least sure answer, the least sure first."""
        return [row for _, _, row in sorted(self._worst, key=lambda item: (-item[0], -item[1]))]

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        if not self.images:
            return []
        shown = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LABELS]
        width = max((len(name) for name, _ in shown), default=0)
        lines = [f"  {name:<{width}}  {count:>7,}  {count / self.images:6.1%}" for name, count in shown]
        if rest := len(self.counts) - len(shown):
            lines.append(f"  and {rest:,} more classes")
        if self.unlabelled:
            lines.append(f"  without a label: {self.unlabelled:,}")
        return [*lines, "least sure:", *(f"  {answer_line(row)}" for row in self.least_sure)]
