"""Recipes: YAML files that configure a run, each with a header comment that says what it does and what to expect.

Whole recipes (`digits`, `cifar100`) lie in `recipes/`, overlays that change one aspect of another (`ddp`, `linear_probe`) in
`recipes/overlays/`. In an installed package they are at `mixer_finetune/_recipes`.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from mixer_finetune.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
USAGE = """usage: mixer-finetune recipes [show NAME | copy NAME FILE | validate NAME|FILE]

  recipes                    list the recipes and overlays
  recipes show NAME          print one
  recipes copy NAME FILE     give you a copy to change, for fit --config FILE
  recipes validate NAME|FILE report everything that is wrong with one"""


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


def main(arguments: list[str]) -> int:
    """The command `recipes`."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    match arguments:
        case []:
            _list()
        case ["show", name]:
            print(find_recipe(name).read_text(encoding="utf-8"), end="")
        case ["copy", name, file]:
            _copy(name, Path(file).expanduser())
        case ["validate", name]:
            return _validate(find_recipe(name))
        case _:
            raise UserError("expected: recipes [show NAME | copy NAME FILE | validate NAME|FILE]; see recipes --help")
    return 0


def _list() -> None:
    recipes = all_recipes()
    width = max(map(len, recipes))
    overlays = recipe_folder() / "overlays"
    for title, wanted in (("recipes", False), ("overlays (add to a recipe: --recipe NAME --recipe OVERLAY)", True)):
        print(f"{title}:")
        for name, path in recipes.items():
            if (path.parent == overlays) is wanted:
                print(f"  {name:<{width}}  {description(path)}")


def _copy(name: str, file: Path) -> None:
    text = find_recipe(name).read_text(encoding="utf-8")
    try:
        with open(file, "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists already; choose another name") from None
    except OSError as error:
        raise UserError(f"{file} can't be written ({error.strerror})") from error
    print(f"copied {name} to {file}; use it with: mixer-finetune fit --config {file}")


def _validate(path: Path) -> int:
    from mixer_finetune.options import config_errors, read_yaml, run_parser

    errors = config_errors(run_parser("mixer-finetune fit", ""), read_yaml(path))
    for error in errors:
        print(f"{path}: {error}", file=sys.stderr)
    if not errors:
        print(f"{path}: nothing wrong")
    return 2 if errors else 0
