"""Write docs/recipes.md from the headers of the recipes: python docs/make_recipes.py."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PAGE = Path(__file__).resolve().parent / "recipes.md"
HEAD = """<!-- Written by docs/make_recipes.py from the headers in recipes/: change those. -->
# Recipes

A recipe is a file of options. Its header says what it does, the command, what to expect and from whom, and what it
needs; this page is made of those headers. `mixer-finetune recipes copy NAME FILE` gives you one to change
([options](options.md)).
"""
GROUPS = {
    "Whole recipes": ("*.yaml", "Each configures a run."),
    "Overlays": ("overlays/*.yaml", "Each changes one aspect of a recipe: `--recipe cifar100 --recipe NAME`."),
}


def section(file: Path) -> str:
    """A recipe's header as Markdown: title and summary, its commands as a block, and the rest as it stands there."""
    text = file.read_text(encoding="utf-8")
    header = re.match(r"(?:#.*\n)+", text)
    assert header is not None, file
    lines = [line[1:].removeprefix(" ") for line in header[0].splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        parts.append([]) if not line.strip() else parts[-1].append(line)
    blocks = []
    for part in parts:
        if all(line.startswith("  ") for line in part):
            blocks.append("```\n" + "\n".join(line.strip() for line in part) + "\n```")
        else:
            blocks.append(_paragraph(part))
    options = text[header.end() :].strip()
    blocks.append(f'<details markdown="1"><summary>Its options</summary>\n\n```yaml\n{options}\n```\n\n</details>')
    return f"### {file.stem}\n\n" + "\n\n".join(blocks) + "\n"


def _paragraph(lines: list[str]) -> str:
    """Running text, cut at 120 characters; lines that are indented are rows of figures and stay as they are."""
    rows = [line.strip() for line in lines if line.startswith("  ")]
    text = " ".join(line for line in lines if not line.startswith("  "))
    marked = " ".join(map(_literal, text.split())).replace("` `", " ")
    marked = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", marked)
    filled = textwrap.fill(marked, 118, break_long_words=False, break_on_hyphens=False)
    listed = [f"- {re.sub(r' {2,}', ' · ', row)}" for row in rows]
    return filled + ("\n\n" + "\n".join(listed) if listed else "")


def _literal(word: str) -> str:
    """A word that Markdown would take for marks, as code, without the punctuation around it."""
    match = re.fullmatch(r"(\(?)(.*?)([,.;:)]*)", word)
    assert match is not None
    before, middle, after = match.groups()
    return f"{before}`{middle}`{after}" if re.search(r"[*<>_]|^--", middle) else word


def page() -> str:
    """The page."""
    parts = [HEAD]
    for title, (pattern, about) in GROUPS.items():
        parts += [f"## {title}\n\n{about}\n", *(section(file) for file in sorted(RECIPES.glob(pattern)))]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
