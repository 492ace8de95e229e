"""Which rows of a trained head are for which classes, by their names, as ImageNet's and WordNet's are written.

A row's name may be a list of synonyms behind a WordNet number ("n01440764 tench, Tinca_tinca"), either of them alone,
or the name of a synset ("tench.n.01").
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

_NUMBER = re.compile(r"(n\d{8})(?:[\s_:,-]+|$)", re.IGNORECASE)
_SENSE = re.compile(r"\.[nvars]\.\d+$")
# How English nouns end in the plural and in the singular: WordNet's rules (Morphy), and -ves for -fe.
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("ses", "s"), ("xes", "x"), ("zes", "z"),
            ("ches", "ch"), ("shes", "sh"), ("s", ""))  # fmt: skip
_SHORTEST = 3  # letters of a singular


class ClassRows:
    """Finds rows by the names of classes.

    Args:
        known: Names of the rows.
    """

    def __init__(self, known: list[str]) -> None:
        # The first that has the name counts: what is more exact comes first.
        self._ways: list[tuple[Callable[[str], set[str]], dict[str, list[int]]]] = []
        for way in (_whole, _numbers, _synonyms, _lemmas):
            rows = defaultdict(list)
            for row, name in enumerate(known):
                for form in way(name):
                    rows[form].append(row)
            self._ways.append((way, dict(rows)))

    def find(self, name: str) -> list[int]:
        """All rows that have the name: none, the one, or several, between which nothing tells.

        Args:
            name: Of a class. Case, underscores and hyphens do not count.
        """
        for way, rows in self._ways:
            if found := {row for form in way(name) for row in rows.get(form, ())}:
                return sorted(found)
        return []


def plain(name: str) -> str:
    """A name without what does not count."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _whole(name: str) -> set[str]:
    return {plain(name)}


def _numbers(name: str) -> set[str]:
    found = _NUMBER.match(name.strip())
    return {found[1].casefold()} if found else set()


def _synonyms(name: str) -> set[str]:
    words = _NUMBER.sub("", name.strip(), count=1) if _NUMBER.match(name.strip()) else name
    return {form for part in words.split(",") if (form := plain(_SENSE.sub("", part.strip())))}


def _lemmas(name: str) -> set[str]:
    synonyms = _synonyms(name)
    return synonyms | {singular for form in synonyms for singular in _singulars(form)}


def _singulars(name: str) -> Iterable[str]:
    """What a name may be the plural of, by the ending of its last word."""
    if name.endswith("ss"):
        return
    for plural, singular in _PLURALS:
        made = name.removesuffix(plural) + singular
        if name.endswith(plural) and len(made.split()[-1] if made.split() else "") >= _SHORTEST:
            yield made
