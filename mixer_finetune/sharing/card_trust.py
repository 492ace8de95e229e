"""The card's part on trust: the temperature, and the sets of labels that `predict --coverage` gives."""

from __future__ import annotations

from collections.abc import Callable

from mixer_finetune.evaluation.results import Results
from mixer_finetune.evaluation.trust import before_and_after, change_sentence, set_rows, temperature_sentence


def trust_part(results: Results, markdown: Callable[[str], str]) -> list[str]:
    """The part as Markdown, in a list; an empty one where nothing is known.

    Args:
        results: Of the run.
        markdown: Gives a text as Markdown that shows it as it is.
    """
    found = results.calibration
    if found is None:
        return []
    sentences = [temperature_sentence(found), change_sentence(found, results.split)]
    lines = [" ".join(markdown(sentence) for sentence in sentences if sentence)]
    if found["why_not"] is None:
        lines += ["", *_table(("", "before", "after"), before_and_after(found, results.split), markdown)]
    if rows := set_rows(found):
        lines += [
            "",
            "Sets of labels that hold the true one with a stated probability (`mixer-finetune predict --coverage 0.9`, "
            "from `calibration.json`), where images are like those of the data:",
            "",
            *_table(("promised", f"measured on {results.split}", "labels in a set, on average"), rows, markdown),
        ]
    return ["## Calibration\n\n" + "\n".join(lines)]


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]], markdown: Callable[[str], str]) -> list[str]:
    lines = [heads, ("-",) * len(heads), *rows]
    return ["| " + " | ".join(cell if cell == "-" else markdown(cell) for cell in line) + " |" for line in lines]
