"""The version to release and its notes: python .github/release.py version|notes.

The version stands in four places, which must agree: the newest heading of CHANGELOG.md (## [0.2.0] - 2026-12-01, with
nothing left under Unreleased), pyproject.toml, mixer_finetune/__init__.py and CITATION.cff.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "pyproject.toml": r'^version = "(.+)"$',
    "mixer_finetune/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}


def release(root: Path) -> tuple[str, str]:
    """The version and the notes of the release that a checkout is ready for.

    Raises:
        SystemExit: It is not; the message says why.
    """
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *sections = re.split(r"^## ", changelog.partition("## [Unreleased]")[2], flags=re.MULTILINE)
    if unreleased.strip():
        sys.exit("CHANGELOG.md has changes under [Unreleased]: give them a heading, ## [VERSION] - DATE")
    heading, _, notes = (sections or [""])[0].partition("\n")
    match = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading)
    if match is None:
        sys.exit(f"the newest heading of CHANGELOG.md is no [VERSION] - DATE, but '{heading}'")
    for name, pattern in ELSEWHERE.items():
        found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != match[1]:
            sys.exit(f"CHANGELOG.md has {match[1]}, {name} has {found[1] if found else 'no version'}")
    return match[1], notes.strip()


if __name__ == "__main__":
    version, notes = release(ROOT)
    print({"version": version, "notes": notes}[sys.argv[1]])
