"""Classes that configurations name: importing one runs its module, which a stranger may have chosen."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

log = logging.getLogger(__name__)
# Whose classes are imported without a word.
HOUSES = ("lightning", "torch", "torchvision", "mixer_finetune")
# Options of the trainer that hold objects, which only a training needs.
_OBJECTS = ("callbacks", "logger", "plugins", "profiler")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def is_foreign(path: str) -> bool:
    """Whether a class is from outside lightning, torch, torchvision and this package."""
    return "." in path and path.partition(".")[0] not in HOUSES


def foreign_classes(value: Any) -> Iterator[str]:
    """The foreign classes that an option's value names: as `class_path`, or as a text that leads to a module."""
    if isinstance(value, str) and _PATH.fullmatch(value) and is_foreign(value) and _is_module(value.partition(".")[0]):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "class_path" and isinstance(inner, str):
                yield from (inner,) if is_foreign(inner) else ()
            else:
                yield from foreign_classes(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from foreign_classes(inner)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None  # which imports nothing, since the name has no dot
    except (ImportError, ValueError):
        return False


def foreign_in(config: Mapping[str, Any], takes_classes: Callable[[str], bool]) -> dict[str, list[str]]:
    """The foreign classes in a configuration, by the option that names them.

    Args:
        config: Nested, as a file holds it.
        takes_classes: Whether an option (`trainer.callbacks`) takes classes.
    """
    found = {}
    for group, options in config.items():
        for name, value in options.items() if isinstance(options, Mapping) else ():
            named = [*foreign_classes(value)] if takes_classes(f"{group}.{name}") else []
            if named:
                found[f"{group}.{name}"] = named
    return found


def say_imports(paths: Iterable[str], where: str) -> None:
    """Say, before it is done, which foreign classes are imported.

    Args:
        paths: Of the classes.
        where: What names them.
    """
    if named := ", ".join(dict.fromkeys(path for path in paths if is_foreign(path))):
        log.info(f"imports    {named}: named in {where}, from outside {', '.join(HOUSES)}")


def without_objects(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration for what trains nothing: without callbacks, loggers and all other objects of training."""
    options = config.get("trainer")
    trainer = {
        name: value
        for name, value in (options.items() if isinstance(options, Mapping) else ())
        if name not in _OBJECTS and not isinstance(value, Mapping | list) and not [*foreign_classes(value)]
    }
    model = dict(config.get("model") or {})
    for name in ("optimizer", "lr_scheduler"):
        if not isinstance(model.get(name), str) or "." in model[name]:
            model.pop(name, None)
    return {**config, "trainer": trainer, "model": model}
