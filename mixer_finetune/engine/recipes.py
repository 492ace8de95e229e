"""Recipes: YAML files that configure a run, each with a header comment that says what it does and what to expect.

Whole recipes (`digits`, `cifar100`) lie in `recipes/`, overlays that change one aspect of another (`ddp`,
`linear_probe`) in `recipes/overlays/`. In an installed package they are at `mixer_finetune/_recipes`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from mixer_finetune.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def recipe_folder() -> Path:
    """Where the recipes are: inside an installed package, else in the checkout."""
    installed = _PACKAGE / "_recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def all_recipes() -> dict[str, Path]:
    """Name to file, whole recipes first, then overlays."""
    folder = recipe_folder()
    files = [*sorted(folder.glob("*.yaml")), *sorted((folder / "overlays").glob("*.yaml"))]
    return {file.stem: file for file in files}


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its name or as a path to a YAML file.

    Raises:
        UserError: There is none; the message gives the nearest name.
    """
    known = all_recipes()
    if name in known:
        return known[name]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown recipe '{name}'; {hint}known are {', '.join(known)}, or give the path of a .yaml file")


def description(path: Path) -> str:
    """The first line of a recipe's header comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
