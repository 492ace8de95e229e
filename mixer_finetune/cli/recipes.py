"""The command `recipes`."""

from __future__ import annotations

import sys
from pathlib import Path

from mixer_finetune.engine.recipes import all_recipes, description, find_recipe, recipe_folder
from mixer_finetune.errors import UserError
from mixer_finetune.texts import terminal, terminal_line

USAGE = """usage: mixer-finetune recipes [show NAME | copy NAME FILE | validate NAME|FILE]

  recipes                    list the recipes and overlays
  recipes show NAME          print one
  recipes copy NAME FILE     give you a copy to change, for fit --config FILE
  recipes validate NAME|FILE report everything that is wrong with one"""


def main(arguments: list[str]) -> int:
    """The command `recipes`."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    match arguments:
        case []:
            _list()
        case ["show", name]:
            print(terminal(find_recipe(name).read_text(encoding="utf-8")), end="")
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
    from mixer_finetune.cli.lightning import spell
    from mixer_finetune.engine.arguments import Arguments, normalised, read_yaml, take_classes
    from mixer_finetune.engine.parser import MixerCLI, config_errors

    content = normalised(read_yaml(path))
    take_classes(content)
    errors = config_errors(MixerCLI(Arguments()).parser, content, imports=False)
    for error in errors:
        print(terminal_line(f"{path}: {error.spelled(spell)}"), file=sys.stderr)
    if not errors:
        print(f"{path}: nothing wrong")
    return 2 if errors else 0
